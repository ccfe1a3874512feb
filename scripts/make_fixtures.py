#!/usr/bin/env python3
"""Makes the reference fixtures in tests/fixtures of mistralrs-core and mistralrs-quant with transformers, gguf, sentence-transformers and llama.cpp.

    python3 -m venv .venv-fixtures && . .venv-fixtures/bin/activate
    pip install numpy==1.26.4 torch==2.15.0 transformers==5.23.0 safetensors==0.8.0 gguf==0.19.0 \
        sentence-transformers==6.2.0
    CMAKE_ARGS="-DGGML_NATIVE=ON" pip install llama-cpp-python==0.3.36
    ./scripts/get_models.sh --qwen
    python scripts/make_fixtures.py --llama DIRECTORY_WITH_LLAMA_PERPLEXITY

Tests never need this: they read what it wrote. tests/fixtures/README.md says what each file is.
"""

import argparse
import json
import pathlib
import re
import subprocess
import tempfile

import gguf
import llama_cpp
import numpy as np
import torch
from gguf import GGMLQuantizationType as Type
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch
from sentence_transformers.sentence_transformer.modules import Normalize, Pooling
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import AutoModel, AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, MistralConfig, Qwen2Config

ROOT = pathlib.Path(__file__).resolve().parent.parent
FIXTURES = ROOT / "mistralrs-core/tests/fixtures"
BLOCK_FIXTURES = ROOT / "mistralrs-quant/tests/fixtures"
SMOLLM2 = "SmolLM2-135M-Instruct.Q4_1.gguf"
QWEN2 = "qwen2.5-coder-0.5b-instruct-q4_k_m.gguf"
NUM_GREEDY = 32
NUM_KL_POSITIONS = 64
NUM_KL_TOP = 200
# Last positions of each prompt whose logits are kept.
NUM_POSITIONS = 2
# Columns of a large vocabulary that are kept: every 24th reaches all parts of the table.
COLUMN_STRIDE = 24
# Of Qwen's three times larger one.
QWEN_COLUMN_STRIDE = 96
PERPLEXITY_WINDOW = 512
PERPLEXITY_WINDOWS = 8

CHAT_TEMPLATE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

PROMPTS = [
    "<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n",
    "Once upon a time, in a village by the sea, there lived a fisherman who",
    "def fibonacci(n):\n    \"\"\"Return the n-th Fibonacci number.\"\"\"\n",
]

TEXT = (
    "The water cycle describes how water moves on, above and below the surface of the Earth. The sun heats water in "
    "oceans and lakes, and some of it evaporates into the air. Rising air carries the vapour up, where cooler "
    "temperatures make it condense into clouds. Currents move clouds around the globe, and cloud particles grow, "
    "collide and fall out of the sky as rain or snow. Most of it falls back into the oceans or onto land, where it "
    "flows over the ground as runoff."
)


# --- Tiny checkpoints -------------------------------------------------------------------------------------------


def tiny_tokenizer(directory):
    """A byte-level BPE of 320 tokens, trained on this file's texts."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=["<|endoftext|>", "<|im_start|>", "<|im_end|>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT] + PROMPTS, trainer)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {"bos_token": "<|im_start|>", "eos_token": "<|im_end|>", "chat_template": CHAT_TEMPLATE}
    (directory / "tokenizer_config.json").write_text(json.dumps(config, indent=2))
    return tokenizer


def tiny_config(kind=LlamaConfig, **changes):
    values = dict(
        vocab_size=320,
        hidden_size=64,
        intermediate_size=96,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=512,
        rms_norm_eps=1e-5,
        rope_parameters={"rope_type": "default", "rope_theta": 10000.0},
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=2,
    )
    return kind(**(values | changes))


def tiny_model(config, seed, table_scale=1.0):
    """Random weights large enough that logits span tens, as a trained model's do; a tied head scales with the table."""
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config).float().eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "norm" in name:
                weight.copy_(1 + 0.2 * torch.randn_like(weight))
            elif "embed" in name:
                weight.copy_(torch.randn_like(weight) * table_scale)
            elif name.endswith("bias"):
                weight.copy_(0.3 * torch.randn_like(weight))
            else:
                weight.copy_(torch.randn_like(weight) * 1.5 / weight.shape[-1] ** 0.5)
    return model


def save_tiny(model, directory, dtype, num_shards):
    """As `save_pretrained` lays files out, with keys of our choice."""
    directory.mkdir(parents=True, exist_ok=True)
    tokenizer = tiny_tokenizer(directory)
    config = model.config.to_dict()
    config["architectures"] = [type(model).__name__]
    (directory / "config.json").write_text(json.dumps(config, indent=2))
    (directory / "generation_config.json").write_text(json.dumps({"eos_token_id": [2, 0]}))
    tensors = {k: v.to(dtype).contiguous() for k, v in model.state_dict().items()}
    if model.config.tie_word_embeddings:
        tensors.pop("lm_head.weight")
    if num_shards == 1:
        save_torch(tensors, directory / "model.safetensors", metadata={"format": "pt"})
        (directory / "model.safetensors").chmod(0o644)
        return tokenizer
    names, weight_map = sorted(tensors), {}
    for shard in range(num_shards):
        file = f"model-{shard + 1:05}-of-{num_shards:05}.safetensors"
        part = {name: tensors[name] for name in names[shard::num_shards]}
        save_torch(part, directory / file, metadata={"format": "pt"})
        (directory / file).chmod(0o644)
        weight_map |= {name: file for name in part}
    index = {"metadata": {}, "weight_map": dict(sorted(weight_map.items()))}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=2))
    return tokenizer


def permute(weight, num_heads):
    """Half-split rotary rows to interleaved ones: what llama.cpp's converter does to q and k of Llama."""
    return weight.reshape(num_heads, 2, -1, weight.shape[-1]).swapaxes(1, 2).reshape(weight.shape)


HF_TO_GGUF = {
    "self_attn.q_proj": "attn_q", "self_attn.k_proj": "attn_k", "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output", "mlp.gate_proj": "ffn_gate", "mlp.up_proj": "ffn_up", "mlp.down_proj": "ffn_down",
    "input_layernorm": "attn_norm", "post_attention_layernorm": "ffn_norm",
}  # fmt: skip


def gguf_name(name):
    fixed = {"model.embed_tokens": "token_embd", "model.norm": "output_norm", "lm_head": "output"}
    stem, suffix = name.rsplit(".", 1)
    if stem in fixed:
        return f"{fixed[stem]}.{suffix}"
    _, _, layer, rest = stem.split(".", 3)
    return f"blk.{layer}.{HF_TO_GGUF[rest]}.{suffix}"


def write_tiny_gguf(model, tokenizer, path, file_type=0, stored=None):
    """The checkpoint as llama.cpp's converter would write it in F32, but for tensors that `stored` has as bytes with a type."""
    config = model.config
    writer = gguf.GGUFWriter(str(path), config.model_type)
    writer.add_name("tiny")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    head_size = getattr(config, "head_dim", None) or config.hidden_size // config.num_attention_heads
    writer.add_rope_dimension_count(head_size)
    writer.add_key_length(head_size)
    writer.add_value_length(head_size)
    writer.add_vocab_size(config.vocab_size)
    writer.add_file_type(file_type)
    vocabulary = tokenizer.get_vocab()
    tokens = sorted(vocabulary, key=vocabulary.get)
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types([3 if token.startswith("<|") and token.endswith("|>") else 1 for token in tokens])
    writer.add_token_merges([" ".join(merge) if isinstance(merge, list) else merge for merge in merges])
    writer.add_bos_token_id(1)
    writer.add_eos_token_id(2)
    writer.add_add_bos_token(False)
    writer.add_chat_template(CHAT_TEMPLATE)
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight" and config.tie_word_embeddings:
            continue
        data = weight.float().numpy()
        # Llama alone is turned in interleaved pairs there.
        if config.model_type == "llama" and ("q_proj" in name or "k_proj" in name):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            data = permute(data.reshape(data.shape[0], -1), heads).reshape(data.shape)
        data, kind = (stored or {}).get(gguf_name(name), (np.ascontiguousarray(data), None))
        writer.add_tensor(gguf_name(name), data, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


# --- References -------------------------------------------------------------------------------------------------


def quantize(source, target, file_type, pure=False):
    params = llama_cpp.llama_model_quantize_default_params()
    params.ftype, params.allow_requantize, params.nthread, params.pure = file_type, True, 2, pure
    if llama_cpp.llama_model_quantize(str(source).encode(), str(target).encode(), params) != 0:
        raise RuntimeError(f"llama.cpp could not make {target}")


class LlamaCpp:
    """llama.cpp with F32 KV and without flash attention; one thread, so that a busy machine does not spin."""

    def __init__(self, path):
        self.llm = llama_cpp.Llama(
            str(path), n_ctx=512, n_batch=512, logits_all=True, type_k=0, type_v=0, flash_attn=False, n_threads=1,
            n_threads_batch=1, verbose=False,
        )  # fmt: skip

    def logits(self, tokens):
        self.llm.reset()
        self.llm.eval(tokens)
        return np.array(self.llm.scores[: len(tokens)], dtype=np.float32)

    def tokenize(self, text):
        return self.llm.tokenize(text.encode(), add_bos=False, special=True)

    def greedy(self, tokens):
        out, logits = [], self.logits(tokens)[-1]
        for _ in range(NUM_GREEDY):
            out.append(int(logits.argmax()))
            self.llm.eval(out[-1:])
            logits = self.llm.scores[len(tokens) + len(out) - 1]
        return out


class Transformers:
    """transformers in F32."""

    def __init__(self, model):
        self.model = model.float().eval()

    @torch.no_grad()
    def logits(self, tokens):
        return self.model(torch.tensor([tokens])).logits[0].numpy()

    def greedy(self, tokens):
        out = []
        for _ in range(NUM_GREEDY):
            out.append(int(self.logits(tokens + out)[-1].argmax()))
        return out


def continuations(engine, prompts):
    """Prompts and their greedy continuations."""
    tensors = {}
    for index, tokens in enumerate(prompts):
        tensors[f"prompt.{index}"] = np.array(tokens, dtype=np.uint32)
        tensors[f"greedy.{index}"] = np.array(engine.greedy(tokens), dtype=np.uint32)
    return tensors


def exact_reference(engine, prompts, stride=1):
    """Continuations, and the logits of each prompt's last positions in every `stride`-th column."""
    tensors = continuations(engine, prompts)
    for index, tokens in enumerate(prompts):
        last = engine.logits(tokens)[-NUM_POSITIONS:]
        tensors[f"logits.{index}"] = np.ascontiguousarray(last[:, ::stride])
        # Over the whole vocabulary, so that columns left out cannot be wrong unnoticed.
        tensors[f"log_sum_exp.{index}"] = np.logaddexp.reduce(last.astype(np.float64), axis=1).astype(np.float32)
        tensors[f"range.{index}"] = np.array([last.max() - last.min()], dtype=np.float32)
    return tensors


def log_probs_of(engine, tokens):
    logits = engine.logits(tokens[:NUM_KL_POSITIONS]).astype(np.float64)
    return logits - np.logaddexp.reduce(logits, axis=1, keepdims=True)


def quantized_reference(engine, widened, prompts, text):
    """Continuations, and the likeliest tokens of each position of a text with their log-probabilities.

    The metadata says how far llama.cpp is from itself: the divergence between this run, which rounds activations to 8
    bits, and `widened`'s, the same weights in F32.
    """
    log_probs, exact = log_probs_of(engine, text), log_probs_of(widened, text)
    ids = np.argsort(-log_probs, axis=1)[:, :NUM_KL_TOP]
    tensors = continuations(engine, prompts) | {
        "text": np.array(text[:NUM_KL_POSITIONS], dtype=np.uint32),
        "top_ids": ids.astype(np.uint32),
        "top_log_probs": np.take_along_axis(log_probs, ids, axis=1).astype(np.float32),
    }
    rounding = (np.exp(log_probs) * (log_probs - exact)).sum(axis=1).mean()
    tail = 1 - np.exp(np.take_along_axis(log_probs, ids, axis=1)).sum(axis=1)
    is_same = [widened.greedy(prompt) == tensors[f"greedy.{i}"].tolist() for i, prompt in enumerate(prompts)]
    print(f"    llama.cpp from itself: {rounding:.2e}, same continuations {is_same}; outside the top: {tail.mean():.3f}")
    return tensors, rounding


def checksums(path):
    """Type and checksum of each tensor, so that a test that requantizes knows whether it has the same weights."""
    sums = {}
    for tensor in gguf.GGUFReader(str(path)).tensors:
        words = np.frombuffer(tensor.data.tobytes(), dtype=np.uint16).astype(np.uint64)
        weighted = words * (np.arange(len(words), dtype=np.uint64) + np.uint64(1))
        sums[tensor.name] = [tensor.tensor_type.name, f"{int(weighted.sum(dtype=np.uint64)):016x}"]
    return sums


def write(name, tensors, **metadata):
    path = FIXTURES / "references" / f"{name}.safetensors"
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file(tensors, path, metadata={key: str(value) for key, value in metadata.items()})
    path.chmod(0o644)
    print(f"  {path.relative_to(ROOT)}: {path.stat().st_size} bytes")


# --- The fixtures -----------------------------------------------------------------------------------------------


def make_tiny():
    directory = FIXTURES / "tiny-llama"
    model = tiny_model(tiny_config(), seed=1)
    tokenizer = save_tiny(model, directory, torch.float32, num_shards=2)
    prompts = [tokenizer.encode(text).ids for text in PROMPTS]
    write("tiny-llama.transformers", exact_reference(Transformers(model), prompts), made_by="transformers, F32")

    f32 = FIXTURES / "tiny-llama-f32.gguf"
    write_tiny_gguf(model, tokenizer, f32)
    write("tiny-llama.llama-cpp", exact_reference(LlamaCpp(f32), prompts), made_by="llama.cpp, F32")

    # Everything a Llama may do differently: a head size of its own, biases, tied head, Llama 3.1's rotary scaling.
    rope = {
        "rope_type": "llama3", "rope_theta": 10000.0, "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0,
        "original_max_position_embeddings": 64,
    }  # fmt: skip
    config = tiny_config(
        hidden_size=48, head_dim=24, rope_parameters=rope, attention_bias=True, mlp_bias=True, tie_word_embeddings=True
    )
    model = tiny_model(config, seed=2)
    round_to_bf16(model)
    directory = FIXTURES / "tiny-llama-bf16"
    tokenizer = save_tiny(model, directory, torch.bfloat16, num_shards=1)
    prompts = [tokenizer.encode(text).ids for text in PROMPTS + [TEXT]]
    write("tiny-llama-bf16.transformers", exact_reference(Transformers(model), prompts), made_by="transformers, F32")


@torch.no_grad()
def round_to_bf16(model):
    """Weights alone: `model.to` would also round the rotary frequencies."""
    for weight in model.parameters():
        weight.copy_(weight.to(torch.bfloat16))


def make_tiny_qwen2():
    """What Qwen2 does otherwise: biases of q, k and v that no key of its configuration mentions, half-split rotary pairs in GGUF."""
    rope = {"rope_type": "default", "rope_theta": 1000000.0}
    config = tiny_config(Qwen2Config, rms_norm_eps=1e-6, rope_parameters=rope, tie_word_embeddings=True)
    model = tiny_model(config, seed=4)
    round_to_bf16(model)
    tokenizer = save_tiny(model, FIXTURES / "tiny-qwen2-bf16", torch.bfloat16, num_shards=1)
    prompts = [tokenizer.encode(text).ids for text in PROMPTS + [TEXT]]
    write("tiny-qwen2.transformers", exact_reference(Transformers(model), prompts), made_by="transformers, F32")
    f32 = FIXTURES / "tiny-qwen2-f32.gguf"
    write_tiny_gguf(model, tokenizer, f32)
    write("tiny-qwen2.llama-cpp", exact_reference(LlamaCpp(f32), prompts), made_by="llama.cpp, F32")


def make_tiny_windows():
    """Windows of 8 tokens, which all prompts outgrow: of Qwen2's upper two layers, and of all of a Mistral whose heads are wider
    together than its hidden states."""
    small = dict(hidden_size=32, intermediate_size=48, sliding_window=8)
    qwen2 = tiny_config(
        Qwen2Config, num_hidden_layers=4, use_sliding_window=True, max_window_layers=2, tie_word_embeddings=True, **small
    )
    mistral = tiny_config(MistralConfig, num_hidden_layers=3, head_dim=16, **small)
    for name, config, seed in [("tiny-qwen2-window", qwen2, 5), ("tiny-mistral", mistral, 6)]:
        model = tiny_model(config, seed)
        round_to_bf16(model)
        tokenizer = save_tiny(model, FIXTURES / name, torch.bfloat16, num_shards=1)
        # As files say it that are older than `layer_types`.
        path = FIXTURES / name / "config.json"
        saved = json.loads(path.read_text())
        saved.pop("layer_types", None)
        path.write_text(json.dumps(saved, indent=2))
        prompts = [tokenizer.encode(text).ids for text in PROMPTS + [TEXT]]
        write(f"{name}.transformers", exact_reference(Transformers(model), prompts), made_by="transformers, F32")


def make_tiny_quantized():
    """Rows of 256, which k-quants need and SmolLM2 has not."""
    config = tiny_config(
        hidden_size=256, intermediate_size=256, num_hidden_layers=1, num_attention_heads=4, num_key_value_heads=1,
        tie_word_embeddings=True,
    )  # fmt: skip
    # Logits of a few units: distributions wide enough for a divergence to mean something.
    model = tiny_model(config, seed=3, table_scale=0.15)
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        tokenizer = tiny_tokenizer(directory)
        tokens = tokenizer.encode(TEXT).ids
        prompts = [tokenizer.encode(text).ids for text in PROMPTS]
        f32 = directory / "f32.gguf"
        write_tiny_gguf(model, tokenizer, f32)
        for name, file_type in [("q4_k_m", 15), ("q6_k", 18), ("code_books", 25)]:
            path, widened = FIXTURES / f"tiny-llama-256-{name}.gguf", directory / f"{name}-f32.gguf"
            if name == "code_books":
                write_tiny_gguf(model, tokenizer, path, file_type, with_code_books(f32, directory))
            else:
                quantize(f32, path, file_type)
            quantize(path, widened, 0)
            tensors, rounding = quantized_reference(LlamaCpp(path), LlamaCpp(widened), prompts, tokens)
            write(f"tiny-llama-256-{name}.llama-cpp", tensors, made_by="llama.cpp", rounding_divergence=rounding)


def with_code_books(f32, directory):
    """Matrices of three types in one file: the table in IQ4_NL, attention in MXFP4, which llama.cpp gives only to experts, and the
    feed-forward block in IQ4_XS."""
    stored = {}
    for part, file_type in [("token_embd", 25), ("ffn_", 30)]:
        path = directory / f"{part}.gguf"
        quantize(f32, path, file_type, pure=True)
        tensors = [tensor for tensor in gguf.GGUFReader(str(path)).tensors if part in tensor.name]
        stored |= {tensor.name: (np.array(tensor.data), tensor.tensor_type) for tensor in tensors}
    for tensor in gguf.GGUFReader(str(f32)).tensors:
        if ".attn_" in tensor.name and len(tensor.shape) == 2:
            stored[tensor.name] = (gguf.quants.quantize(tensor.data, Type.MXFP4), Type.MXFP4)
    # Norms have one type in every file.
    return {name: (data, kind) for name, (data, kind) in stored.items() if kind != Type.F32}


# Where blocks have numbers in f16, which random bytes would make infinite.
HALVES = {
    "Q4_0": [0], "Q4_1": [0, 2], "Q5_0": [0], "Q5_1": [0, 2], "Q8_0": [0], "Q2_K": [80, 82], "Q3_K": [108],
    "Q4_K": [0, 2], "Q5_K": [0, 2], "Q6_K": [208], "IQ4_NL": [0], "IQ4_XS": [0], "MXFP4": [],
}  # fmt: skip
NUM_BLOCK_VALUES = 512
# 2^104: mistralrs-quant takes larger exponents of MXFP4 for this one.
MAX_EXPONENT = 232


def make_blocks():
    """Random blocks of each type, and what gguf dequantizes them to."""
    BLOCK_FIXTURES.mkdir(parents=True, exist_ok=True)
    random = np.random.default_rng(1)
    for name, places in HALVES.items():
        kind = Type[name]
        block_len, block_bytes = gguf.GGML_QUANT_SIZES[kind]
        blocks = random.integers(0, 256, (NUM_BLOCK_VALUES // block_len, block_bytes), dtype=np.uint8)
        for place in places:
            halves = random.uniform(-2, 2, (len(blocks), 1)).astype(np.float16)
            blocks[:, place : place + 2] = halves.view(np.uint8)
        if name == "MXFP4":
            blocks[:, 0] = np.linspace(0, MAX_EXPONENT, len(blocks)).astype(np.uint8)
        values = gguf.quants.dequantize(blocks, kind).astype("<f4")
        path = BLOCK_FIXTURES / f"{name}.bin"
        path.write_bytes(blocks.tobytes() + values.tobytes())
        print(f"  {path.relative_to(ROOT)}: {path.stat().st_size} bytes")


def smollm2_in_transformers(path):
    """The F16 GGUF's weights in transformers, in F32."""
    reader = gguf.GGUFReader(str(path))
    config = LlamaConfig(
        vocab_size=49152, hidden_size=576, intermediate_size=1536, num_hidden_layers=30, num_attention_heads=9,
        num_key_value_heads=3, max_position_embeddings=8192, rms_norm_eps=1e-5, tie_word_embeddings=True,
        rope_parameters={"rope_type": "default", "rope_theta": 100000.0},
    )  # fmt: skip
    stored = {t.name: gguf.dequantize(t.data, t.tensor_type).reshape(t.shape[::-1]) for t in reader.tensors}
    model = LlamaForCausalLM(config)
    state = {}
    for name, weight in model.state_dict().items():
        if name == "lm_head.weight":
            continue
        data = stored[gguf_name(name)].astype(np.float32)
        if "q_proj" in name or "k_proj" in name:
            heads = 9 if "q_proj" in name else 3
            data = data.reshape(heads, -1, 2, data.shape[-1]).swapaxes(1, 2).reshape(data.shape)
        state[name] = torch.from_numpy(np.ascontiguousarray(data))
    missing, unexpected = model.load_state_dict(state, strict=False)
    assert missing in ([], ["lm_head.weight"]) and not unexpected, (missing, unexpected)
    model.tie_weights()
    return model


@torch.no_grad()
def make_embeddings():
    """Of the tiny checkpoints that are there already: each text's vector for each way of pooling, of length 1."""
    for name in ["tiny-llama", "tiny-llama-bf16"]:
        directory = FIXTURES / name
        model = AutoModel.from_pretrained(directory, dtype=torch.float32).eval()
        tokenizer = Tokenizer.from_file(str(directory / "tokenizer.json"))
        tensors = {}
        for index, text in enumerate(PROMPTS + [TEXT]):
            tokens = tokenizer.encode(text).ids
            tensors[f"prompt.{index}"] = np.array(tokens, dtype=np.uint32)
            hidden = model(torch.tensor([tokens])).last_hidden_state
            for ours, theirs in [("mean", "mean"), ("last", "lasttoken"), ("cls", "cls")]:
                features = {"token_embeddings": hidden, "attention_mask": torch.ones(1, len(tokens), dtype=torch.long)}
                features = Normalize()(Pooling(hidden.shape[-1], theirs)(features))
                tensors[f"{ours}.{index}"] = features["sentence_embedding"][0].numpy()
        write(f"{name}.sentence-transformers", tensors, made_by="transformers and sentence-transformers, F32")


def make_smollm2(source):
    with tempfile.TemporaryDirectory() as temporary:
        directory = pathlib.Path(temporary)
        f16, f32 = directory / "f16.gguf", directory / "f32.gguf"
        quantize(source, f16, 1)
        quantize(f16, f32, 0)
        engine = LlamaCpp(f32)
        prompts, text = [engine.tokenize(prompt) for prompt in PROMPTS], engine.tokenize(TEXT)
        stride = {"column_stride": COLUMN_STRIDE}
        tensors = exact_reference(engine, prompts, COLUMN_STRIDE)
        write("smollm2-f16.llama-cpp", tensors, made_by="llama.cpp, weights widened to F32", **stride)
        tensors = exact_reference(Transformers(smollm2_in_transformers(f16)), prompts, COLUMN_STRIDE)
        write("smollm2-f16.transformers", tensors, made_by="transformers, F32", **stride)
        types = {}
        # K quants are not among them: candle, which the tests quantize with, rounds those otherwise than llama.cpp.
        for name, file_type in [("q4_1", None), ("q8_0", 7), ("q4_0", 2)]:
            path, widened = directory / f"{name}.gguf", directory / f"{name}-f32.gguf"
            if file_type is None:
                path = source
            else:
                quantize(source, path, file_type)
            quantize(path, widened, 0)
            exact = LlamaCpp(widened)
            tensors = exact_reference(exact, prompts, COLUMN_STRIDE)
            write(f"smollm2-{name}.widened", tensors, made_by="llama.cpp, weights widened to F32", **stride)
            tensors, rounding = quantized_reference(LlamaCpp(path), exact, prompts, text)
            write(f"smollm2-{name}.llama-cpp", tensors, made_by="llama.cpp", rounding_divergence=rounding)
            types[name] = checksums(path)
        (FIXTURES / "references/smollm2-tensors.json").write_text(json.dumps(types, indent=1, sort_keys=True))


def make_qwen2(source):
    """Qwen2.5-Coder-0.5B as it is fetched: Q5_0 and Q8_0 where Q4_K's 256 do not divide its 896 columns, and a head of its own."""
    with tempfile.TemporaryDirectory() as temporary:
        widened = pathlib.Path(temporary) / "f32.gguf"
        quantize(source, widened, 0)
        exact = LlamaCpp(widened)
        prompts, text = [exact.tokenize(prompt) for prompt in PROMPTS], exact.tokenize(TEXT)
        tensors = exact_reference(exact, prompts, QWEN_COLUMN_STRIDE)
        made_by = "llama.cpp, weights widened to F32"
        write("qwen2-q4_k_m.widened", tensors, made_by=made_by, column_stride=QWEN_COLUMN_STRIDE)
        tensors, rounding = quantized_reference(LlamaCpp(source), exact, prompts, text)
        tensors = {name: values for name, values in tensors.items() if not name.startswith("top_")}
        write("qwen2-q4_k_m.llama-cpp", tensors, made_by="llama.cpp", rounding_divergence=rounding)


def make_perplexity(source, llama):
    """Of SmolLM2 over the first two chapters of Alice in Wonderland, as llama-perplexity says it."""
    directory = FIXTURES / "perplexity"
    answers = {"window": PERPLEXITY_WINDOW, "windows": PERPLEXITY_WINDOWS}
    with tempfile.TemporaryDirectory() as temporary:
        q8_0 = pathlib.Path(temporary) / "q8_0.gguf"
        quantize(source, q8_0, 7)
        for name, path in [("q4_1", source), ("q8_0", q8_0)]:
            command = [
                llama / "llama-perplexity", "--model", path, "--file", directory / "alice.txt", "--threads", "1",
                "--ctx-size", str(PERPLEXITY_WINDOW), "--chunks", str(PERPLEXITY_WINDOWS),
            ]  # fmt: skip
            done = subprocess.run(command, capture_output=True, text=True, check=True)
            answers[name] = float(re.search(r"Final estimate: PPL = ([0-9.]+)", done.stdout + done.stderr).group(1))
            print(f"  perplexity of {name}: {answers[name]}")
    (directory / "llama-cpp.json").write_text(json.dumps(answers, indent=2) + "\n")


MAKERS = {
    "blocks": lambda _: make_blocks(),
    "tiny": lambda _: make_tiny(),
    "tiny-qwen2": lambda _: make_tiny_qwen2(),
    "tiny-windows": lambda _: make_tiny_windows(),
    "tiny-quantized": lambda _: make_tiny_quantized(),
    "embeddings": lambda _: make_embeddings(),
    "smollm2": lambda options: make_smollm2(options.models / SMOLLM2),
    "qwen2": lambda options: make_qwen2(options.models / QWEN2),
    "perplexity": lambda options: make_perplexity(options.models / SMOLLM2, options.llama),
}


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--models", type=pathlib.Path, default=ROOT / "models")
    parser.add_argument("--llama", type=pathlib.Path, help="the folder of llama.cpp's binaries")
    parser.add_argument("--only", choices=list(MAKERS))
    options = parser.parse_args()
    if options.only in (None, "perplexity") and options.llama is None:
        parser.error("--llama is missing: llama-perplexity is run from there")
    torch.set_num_threads(1)
    for name, make in MAKERS.items():
        if options.only in (None, name):
            make(options)


if __name__ == "__main__":
    main()
