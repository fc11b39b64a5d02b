#!/usr/bin/env python3
"""kvquant generate: the text of tiny models, whose token b is byte b, and what it refuses."""

import codecs
import json
import pathlib
import unicodedata

from tool_case import KV_HEADS, LAYERS, ToolCase, main

CONTEXT = 512  # of the tiny models
PROMPT = "alpha beta gamma"
CHAT_TEMPLATE = "{% for m in messages %}<{{ m.role }}:{{ m.content }}>{% endfor %}"
MEMBERS = {"model", "cache", "text", "ids", "stopped", "prompt_tokens", "prompt_tokens_per_second", "tokens_per_second",
           "cache_tokens", "cache_bytes", "f16_bytes"}


def replace_each_byte(error: UnicodeDecodeError) -> tuple[str, int]:
    return "\ufffd" * (error.end - error.start), error.end


codecs.register_error("each byte", replace_each_byte)


def text_of(ids: list[int]) -> str:
    """Without control characters, and with U+FFFD for bytes that are no UTF-8."""
    text = bytes(ids).decode(errors="each byte")
    return "".join(it for it in text if it in "\n\t" or unicodedata.category(it) != "Cc")


class GenerateCase(ToolCase):
    def generate(self, *options: str | pathlib.Path, prompt: str | None = PROMPT, tokens: int = 20,
                 model: pathlib.Path | None = None) -> dict:
        """The JSON, whose text is what standard output has."""
        given = [] if prompt is None else ["--prompt", prompt]
        said = self.succeed("generate", model or self.model, *given, *options, "--max-tokens", str(tokens), "--quiet",
                            "--json", "g.json")
        found = json.loads((self.folder / "g.json").read_text())
        self.assertEqual(said, found["text"] + "\n")
        return found

    def ids(self, *options: str | pathlib.Path, **others) -> list[int]:
        return self.generate(*options, **others)["ids"]


class Text(GenerateCase):
    def test_members(self) -> None:
        found = self.generate()
        self.assertEqual(set(found), MEMBERS)
        self.assertEqual((found["model"], found["cache"], found["stopped"]), ("tiny llama", "f16", False))
        self.assertEqual((found["prompt_tokens"], len(found["ids"])), (len(PROMPT), 20))
        self.assertTrue(found["prompt_tokens_per_second"] > 0 and found["tokens_per_second"] > 0)

    def test_the_text_is_that_of_the_ids_without_control_characters(self) -> None:
        found = self.generate("--temperature", "1", tokens=200)
        self.assertTrue(any(it < 32 for it in found["ids"]) and any(it >= 128 for it in found["ids"]))  # a text of both
        self.assertEqual(found["text"], text_of(found["ids"]))

    def test_greedy_is_reproducible_at_any_number_of_threads(self) -> None:
        first = self.ids()
        for threads in "123":
            self.assertEqual(self.ids("--threads", threads), first)

    def test_fewer_tokens_are_the_start_of_more(self) -> None:
        longest = self.ids(tokens=70)
        self.assertEqual(len(longest), 70)
        for count in (1, 2, 69):
            self.assertEqual(self.ids(tokens=count), longest[:count])

    def test_generated_tokens_are_read_like_those_of_a_prompt(self) -> None:
        self.calibrate("a.kvq")
        prompt = self.text.read_bytes()[:100]
        for options in ((), ("--artifact", "a.kvq")):
            ids = self.ids(*options, prompt=prompt.decode(), tokens=60)
            (self.folder / "prompt.txt").write_bytes(prompt + bytes(ids[:40]))
            self.assertEqual(self.ids("--prompt-file", "prompt.txt", *options, prompt=None), ids[40:])

    def test_a_token_that_ends_the_answer_is_no_part_of_it(self) -> None:
        ids = self.ids()
        at = next(at for at in range(1, 20) if ids[at] not in ids[:at])
        found = self.generate(model=self.write_model("eos.gguf", "--eos", str(ids[at])))
        self.assertEqual((found["ids"], found["stopped"]), (ids[:at], True))
        at_once = self.generate(model=self.write_model("eos.gguf", "--eos", str(ids[0])))
        self.assertEqual((at_once["ids"], at_once["text"], at_once["stopped"]), ([], "", True))

    def test_a_prompt_from_a_file(self) -> None:
        (self.folder / "prompt.txt").write_text(PROMPT)
        self.assertEqual(self.ids("--prompt-file", "prompt.txt", prompt=None), self.ids())

    def test_bos_begins_a_prompt(self) -> None:
        model = self.write_model("bos.gguf", "--add-bos")
        self.assertEqual(self.generate(model=model)["prompt_tokens"], 1 + len(PROMPT))

    def test_the_chat_template_is_used_unless_the_prompt_is_raw(self) -> None:
        model = self.write_model("chat.gguf", "--chat-template", CHAT_TEMPLATE, "--add-bos")
        chat = self.generate(model=model)
        said = f"<user:{PROMPT}>"
        self.assertEqual((chat["prompt_tokens"], chat["ids"]), (len(said), self.ids(prompt=said)))
        raw = self.generate("--raw", model=model)
        self.assertEqual(raw["prompt_tokens"], 1 + len(PROMPT))
        system = self.generate("--system", "be brief", model=model)
        self.assertEqual(system["ids"], self.ids(prompt="<system:be brief>" + said))

    def test_an_artifact_is_exact_until_a_page_is_complete(self) -> None:
        self.calibrate("a.kvq", "--bits", "2", "--q-norm", "off")
        found = self.generate("--artifact", "a.kvq")
        self.assertEqual((found["cache"], found["ids"]), ("nuq2-1%", self.ids()))

    def test_an_artifact_whose_pages_stay_exact_gives_the_text_of_f16(self) -> None:
        self.calibrate("a.kvq", "--bits", "2")
        prompt = self.text.read_text()[:300]
        exact = self.ids(prompt=prompt, tokens=100)
        options = ("--artifact", "a.kvq")
        self.assertEqual(self.ids(*options, "--recent-pages", "6", prompt=prompt, tokens=100), exact)
        self.assertNotEqual(self.ids(*options, prompt=prompt, tokens=100), exact)

    def test_a_quantized_cache_is_smaller(self) -> None:
        self.calibrate("a.kvq", "--bits", "2")
        prompt = self.text.read_text()[:400]
        quantized, exact = self.generate("--artifact", "a.kvq", prompt=prompt), self.generate(prompt=prompt)
        tokens = 400 + 20 - 1  # nothing follows the last token
        for found in (quantized, exact):
            self.assertEqual(found["cache_tokens"], tokens)
            self.assertEqual(found["f16_bytes"], 2 * 2 * tokens * LAYERS * KV_HEADS * 32)
        self.assertLess(quantized["cache_bytes"], exact["f16_bytes"] / 2)
        self.assertGreaterEqual(exact["cache_bytes"], exact["f16_bytes"])

    def test_the_whole_context_can_be_used(self) -> None:
        self.calibrate("a.kvq")
        for options in ((), ("--artifact", "a.kvq")):
            self.assertEqual(len(self.ids(*options, prompt="x" * (CONTEXT - 1), tokens=1)), 1)
            self.assertEqual(len(self.ids(*options, prompt="x", tokens=CONTEXT - 1)), CONTEXT - 1)

    def test_figures_follow_the_text(self) -> None:
        lines = self.succeed("generate", self.model, "--prompt", PROMPT, "--max-tokens", "5")
        self.assertRegex(lines, r"\n\nf16: 16 tokens read at [\d.]+ tokens/s, 5 generated at [\d.]+ tokens/s; "
                                r"the cache takes [\d.]+ MiB, [\d.]+ MiB in f16\n\Z")


class Profile(GenerateCase):
    STAGES = {"prompt": 300, "answer": 70}  # tokens
    PARTS = {"attention", "cache", "products", "logits", "rest"}

    def profiled(self, *options: str | pathlib.Path) -> dict:
        return self.generate("--profile", *options, prompt=self.text.read_text()[:self.STAGES["prompt"]],
                             tokens=self.STAGES["answer"])

    def test_parts_make_the_whole_of_each_stage(self) -> None:
        self.calibrate("a.kvq")
        for options in ((), ("--artifact", "a.kvq", "--threads", "3")):
            found = self.profiled(*options)
            self.assertEqual(set(found), MEMBERS | {"profile"})
            self.assertEqual(set(found["profile"]), set(self.STAGES))
            for stage, tokens in self.STAGES.items():
                parts = found["profile"][stage]
                total = parts.pop("total")
                self.assertEqual(set(parts), self.PARTS)
                for unit in ("seconds", "percent"):
                    self.assertAlmostEqual(sum(it[unit] for it in parts.values()) / total[unit], 1)
                self.assertAlmostEqual(total["percent"], 100)
                for name, part in (*parts.items(), ("total", total)):
                    self.assertTrue(part["seconds"] > 0 and part["percent"] > 0, (stage, name, part))
                    self.assertAlmostEqual(part["tokens_per_second"] * part["seconds"] / tokens, 1)

    def test_the_whole_is_the_time_that_is_reported_anyway(self) -> None:
        found = self.profiled()
        for stage, rate in (("prompt", "prompt_tokens_per_second"), ("answer", "tokens_per_second")):
            self.assertAlmostEqual(found["profile"][stage]["total"]["tokens_per_second"] / found[rate], 1)

    def test_the_text_is_the_same(self) -> None:
        self.assertEqual(self.ids("--profile"), self.ids())

    def test_the_table_follows_the_figures(self) -> None:
        command = ("generate", self.model, "--prompt", PROMPT, "--max-tokens")
        table = self.succeed(*command, "5", "--profile").split(" in f16\n\n")[1].splitlines()
        self.assertEqual(table[0].split(), "time prompt, s % tokens/s answer, s % tokens/s".split())
        self.assertEqual([line.split()[0] for line in table[1:]],
                         ["attention", "cache", "products", "logits", "rest", "total"])
        self.assertEqual([line.split()[2::3] for line in table[-1:]], [["100.0", "100.0"]])
        # The only token comes from the prompt: nothing is read after it.
        (attention,) = (line.split() for line in self.succeed(*command, "1", "--profile").splitlines()
                        if line.startswith("attention"))
        self.assertEqual(attention[4:], ["0.000", "0.0", "-"])


class Sampling(GenerateCase):
    def test_a_seed_gives_the_same_text_again_and_another_seed_another(self) -> None:
        first = self.ids("--temperature", "1", "--seed", "7")
        self.assertEqual(self.ids("--temperature", "1", "--seed", "7"), first)
        self.assertNotEqual(self.ids("--temperature", "1", "--seed", "8"), first)

    def test_one_choice_is_greedy(self) -> None:
        for options in (("3", "--top-k", "1"), ("3", "--top-p", "0.000001"), ("0.00001",)):
            self.assertEqual(self.ids("--temperature", *options), self.ids(), options)


class Refusals(GenerateCase):
    def refuse(self, status: int, said: list[str], *options: str | pathlib.Path, prompt: str = PROMPT,
               model: str | pathlib.Path | None = None) -> None:
        self.expect_error(status, said, "generate", model or self.model, "--prompt", prompt, *options)

    def test_a_prompt_is_needed_and_only_one(self) -> None:
        self.expect_error(2, ["--prompt", "--help"], "generate", self.model)
        self.refuse(2, ["--prompt", "--help"], "--prompt-file", self.text)

    def test_empty_prompts(self) -> None:
        self.refuse(1, ["the prompt is empty"], prompt="")
        (self.folder / "empty.txt").write_bytes(b"")
        self.expect_error(1, ["empty.txt: the text is empty"], "generate", self.model, "--prompt-file", "empty.txt")

    def test_more_than_the_context(self) -> None:
        said = ["--max-tokens", f"expected {CONTEXT} together", "context"]
        self.refuse(1, ["a prompt of 16 tokens and 500 to generate", *said], "--max-tokens", "500")
        self.refuse(1, ["a prompt of 600 tokens", *said], prompt="x" * 600)
        self.refuse(1, said, "--max-tokens", str(1 << 24))

    def test_options_that_cannot_be(self) -> None:
        for option, value in (("--temperature", "-1"), ("--temperature", "hot"), ("--top-k", "-1"), ("--top-p", "0"),
                              ("--top-p", "1.5"), ("--max-tokens", "0"), ("--recent-pages", "-1"), ("--seed", "-1"),
                              ("--backend", "abacus")):
            with self.subTest(option=option, value=value):
                self.refuse(2, [option, "--help"], option, value)

    def test_an_artifact_of_another_model(self) -> None:
        self.calibrate("a.kvq")
        other = self.write_model("other.gguf", "--name", "another", "--seed", "2")
        self.refuse(1, ["a.kvq", '"tiny llama"', '"another"'], "--artifact", "a.kvq", model=other)

    def test_keys_quantized_after_rope(self) -> None:
        self.calibrate("a.kvq", "--keys", "post-rope")
        self.refuse(1, ["cpu: not supported", "keys quantized after RoPE"], "--artifact", "a.kvq")

    def test_files_that_are_not_there(self) -> None:
        self.refuse(1, ["absent.gguf: ", "No such file"], model="absent.gguf")
        self.refuse(1, ["absent.kvq: "], "--artifact", "absent.kvq")
        self.expect_error(1, ["absent.txt: No such file"], "generate", self.model, "--prompt-file", "absent.txt")
        self.refuse(1, ["absent/g.json: "], "--json", "absent/g.json")

    def test_an_input_is_not_overwritten(self) -> None:
        self.refuse(1, ["model.gguf", "another name"], "--json", "model.gguf")

    def test_a_system_message_needs_a_template(self) -> None:
        said = ["model.gguf", "no chat template is used", "--system"]
        self.refuse(1, said, "--system", "be brief")
        model = self.write_model("chat.gguf", "--chat-template", CHAT_TEMPLATE)
        self.refuse(1, ["chat.gguf", *said[1:]], "--system", "be brief", "--raw", model=model)

    def test_templates_that_cannot_be_rendered(self) -> None:
        for template, said in (("{% for %}", "TemplateSyntaxError"), ("{{ raise_exception('no\nuser') }}", "no"),
                               ("{{ ''.__class__.__mro__ }}", "SecurityError")):
            model = self.write_model("chat.gguf", "--chat-template", template)
            self.refuse(1, ["chat.gguf: the chat template cannot be rendered", said], model=model)


if __name__ == "__main__":
    main()
