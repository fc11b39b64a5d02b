#!/usr/bin/env python3
"""What docs/hugging_face.md shows, run as a test: a transformers model calibrated, and generating from packed pages.

Usage: hugging_face.py FOLDER [NAME], where NAME is what from_pretrained takes; without it a tiny random model is made
in FOLDER, where all files are left.
"""

import sys
from pathlib import Path

# [doc:calibrate]
import kvquant.hf
from transformers import AutoModelForCausalLM, AutoTokenizer


def calibrate(name: str, text: str, path: Path, samples: int = 16, context: int = 2048) -> None:
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")  # device_map="auto" for one that needs GPUs
    tokenizer = AutoTokenizer.from_pretrained(name)
    artifact = kvquant.hf.calibrate(model, tokenizer, text, format="nuq3", samples=samples, context=context)
    artifact.save(path)
# [/doc]


def calibrate_in_parts(name: str, text: str, path: Path, samples: int, context: int) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    # [doc:parts]
    windows = kvquant.hf.choose_windows(tokenizer, text, samples=samples, context=context)
    room = samples * context
    first = kvquant.hf.collect(model, windows=windows[0::2], adaptive=True, max_tokens=room)
    other = kvquant.hf.collect(model, windows=windows[1::2], adaptive=True, max_tokens=room, ranges_of=first)
    first.merge(other)  # the other may have run elsewhere, and come by save and Calibrator.load
    for bits in (2.5, 3, 4):
        first.fit("adaptive", bits=bits).save(path.with_stem(f"{path.stem}-{bits}"))
    # [/doc]


def generate(name: str, path: Path, prompts: list[str]) -> list[str]:
    # [doc:generate]
    model = AutoModelForCausalLM.from_pretrained(name, dtype="auto")
    tokenizer = AutoTokenizer.from_pretrained(name, padding_side="left")
    inputs = tokenizer(prompts, return_tensors="pt", padding=True)
    with kvquant.hf.attach(model, path) as attached, attached.cache(max_tokens=4096) as cache:
        ids = model.generate(**inputs, past_key_values=cache, max_new_tokens=32)
        used = sum(row.bytes()["total"] for row in cache.rows)
    answers = tokenizer.batch_decode(ids[:, inputs["input_ids"].shape[1]:], skip_special_tokens=True)
    # [/doc]
    print(f"{len(prompts)} answers, {used} bytes")
    return answers


def share_a_prompt(name: str, path: Path, prompt: str, questions: list[str]) -> None:
    model, tokenizer = AutoModelForCausalLM.from_pretrained(name), AutoTokenizer.from_pretrained(name)
    # [doc:prompt]
    with kvquant.hf.attach(model, path) as attached, attached.cache(max_tokens=4096) as read:
        model.generate(**tokenizer(prompt, return_tensors="pt"), past_key_values=read, max_new_tokens=1)
        for question in questions:
            ids = tokenizer(prompt + question, return_tensors="pt")
            answer = model.generate(**ids, past_key_values=read.fork(), max_new_tokens=32)  # the prompt's pages: shared
            print(tokenizer.decode(answer[0, ids["input_ids"].shape[1]:]))
    # [/doc]


def make_tiny(folder: Path) -> None:
    """A random model, and a tokenizer of bytes."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({letter: i for i, letter in enumerate([*letters, "<end>"])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<end>", eos_token="<end>").save_pretrained(folder)
    config = LlamaConfig(vocab_size=257, hidden_size=64, intermediate_size=96, num_attention_heads=4,
                         num_key_value_heads=2, num_hidden_layers=2, max_position_embeddings=2048,
                         initializer_range=0.15, eos_token_id=256, pad_token_id=256)
    LlamaForCausalLM(config).save_pretrained(folder)


def main() -> None:
    folder = Path(sys.argv[1])
    folder.mkdir(parents=True, exist_ok=True)
    if len(sys.argv) < 3:
        make_tiny(folder)
    name = sys.argv[2] if len(sys.argv) > 2 else str(folder)
    text = Path(__file__).read_text(encoding="utf-8")
    calibrate(name, text, folder / "model.kvq", samples=4, context=128)
    calibrate_in_parts(name, text, folder / "mixed.kvq", samples=4, context=128)
    print(generate(name, folder / "model.kvq", ["The printing press", "Why"]))
    share_a_prompt(name, folder / "model.kvq", text[:300], [" Who?", " When?"])


if __name__ == "__main__":
    main()
