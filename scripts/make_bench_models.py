#!/usr/bin/env python3
"""Writes a GGUF file of random weights in Llama-3.2-1B's shapes, and other types of it made by llama-quantize.

    scripts/make_bench_models.py --tokenizer models/SmolLM2-135M-Instruct.Q4_1.gguf --quantize .../llama-quantize DIR Q4_K_M Q8_0

No weights of that size come from a package registry, and speed does not depend on what they are: each is drawn from a normal
distribution of deviation 0.02, as models are before training, so logits stay finite and no two runs differ. Vocabulary and
template are those of --tokenizer's file, so the head is smaller than Llama's. A file that is there already is left alone.
Called by scripts/bench_peers.sh, which also installs what this needs: scripts/lib/bench-requirements.txt.
"""

import argparse
import pathlib
import subprocess

import gguf
import numpy as np
from gguf import GGMLQuantizationType, GGUFReader, GGUFValueType, GGUFWriter

NAME = "Llama-1B-random"
HIDDEN = 2048
LAYERS = 16
HEADS = 32
KV_HEADS = 8
HEAD = 64
FEED_FORWARD = 8192
# Llama 3.2's own is 131,072, by a stretched rotary embedding; no load here comes near this.
CONTEXT = 8192
ROPE_BASE = 500_000.0
DEVIATION = 0.02
SEED = 1


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokenizer", type=pathlib.Path, required=True, help="a GGUF file with the vocabulary to take")
    parser.add_argument("--quantize", type=pathlib.Path, required=True, help="llama.cpp's llama-quantize")
    parser.add_argument("directory", type=pathlib.Path)
    parser.add_argument("types", nargs="*", metavar="TYPE", help="as llama-quantize calls them; F16 is always made")
    options = parser.parse_args()
    options.directory.mkdir(parents=True, exist_ok=True)
    f16 = options.directory / f"{NAME}.F16.gguf"
    make(f16, lambda target: write_f16(options.tokenizer, target))
    for file_type in options.types:
        make(
            options.directory / f"{NAME}.{file_type}.gguf",
            lambda target, file_type=file_type: subprocess.run(
                [options.quantize, f16, target, file_type], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ),
        )


def make(path, write):
    """Only a whole file gets the name."""
    if not path.exists():
        part = path.with_suffix(".part")
        write(part)
        part.rename(path)
    print(path)


def write_f16(tokenizer, path):
    writer = GGUFWriter(str(path), "llama")
    num_tokens = copy_tokenizer(GGUFReader(str(tokenizer)), writer)
    add_shapes(writer, num_tokens)
    tensors = shapes(num_tokens)
    for name, shape in tensors.items():
        dtype = np.dtype(np.float32 if len(shape) == 1 else np.float16)
        writer.add_tensor_info(name, shape, dtype, int(np.prod(shape)) * dtype.itemsize)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    generator = np.random.default_rng(SEED)
    # One at a time: the whole is 2 GB.
    for shape in tensors.values():
        if len(shape) == 1:
            writer.write_tensor_data(np.ones(shape, dtype=np.float32))
        else:
            values = generator.standard_normal(shape, dtype=np.float32) * np.float32(DEVIATION)
            writer.write_tensor_data(values.astype(np.float16))
    writer.close()


def copy_tokenizer(reader, writer):
    """All `tokenizer.*` keys; the number of tokens."""
    for name, field in reader.fields.items():
        if name.startswith("tokenizer."):
            kind = field.types[0]
            sub_type = field.types[-1] if kind == GGUFValueType.ARRAY else None
            writer.add_key_value(name, field.contents(), kind, sub_type)
    return len(reader.fields["tokenizer.ggml.tokens"].data)


def add_shapes(writer, num_tokens):
    writer.add_name(NAME)
    writer.add_context_length(CONTEXT)
    writer.add_embedding_length(HIDDEN)
    writer.add_block_count(LAYERS)
    writer.add_feed_forward_length(FEED_FORWARD)
    writer.add_head_count(HEADS)
    writer.add_head_count_kv(KV_HEADS)
    writer.add_key_length(HEAD)
    writer.add_value_length(HEAD)
    writer.add_rope_dimension_count(HEAD)
    writer.add_rope_freq_base(ROPE_BASE)
    writer.add_layer_norm_rms_eps(1e-5)
    writer.add_vocab_size(num_tokens)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def shapes(num_tokens):
    """Tensor name → shape; no `output.weight`: the head is the token table, as Llama 3.2's is."""
    tensors = {"token_embd.weight": (num_tokens, HIDDEN), "output_norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        block = {
            "attn_norm": (HIDDEN,),
            "attn_q": (HEADS * HEAD, HIDDEN),
            "attn_k": (KV_HEADS * HEAD, HIDDEN),
            "attn_v": (KV_HEADS * HEAD, HIDDEN),
            "attn_output": (HIDDEN, HEADS * HEAD),
            "ffn_norm": (HIDDEN,),
            "ffn_gate": (FEED_FORWARD, HIDDEN),
            "ffn_up": (FEED_FORWARD, HIDDEN),
            "ffn_down": (HIDDEN, FEED_FORWARD),
        }
        tensors |= {f"blk.{layer}.{name}.weight": shape for name, shape in block.items()}
    return tensors


if __name__ == "__main__":
    main()
