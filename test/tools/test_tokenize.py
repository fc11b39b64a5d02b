#!/usr/bin/env python3
"""kvquant tokenize. The tiny models' tokens are bytes."""

from tool_case import ToolCase, main


class Tokenize(ToolCase):
    def test_the_ids_of_a_text_are_its_bytes(self) -> None:
        self.text.write_text("Grüße,\n\n  世界 \t🙂 <s>")
        self.assertEqual(self.succeed_json("tokenize", self.model, "--text", self.text),
                         {"ids": list(self.text.read_bytes())})

    def test_bytes_that_are_not_utf8_are_tokens_too(self) -> None:
        self.text.write_bytes(bytes(range(1, 256)))
        self.assertEqual(self.succeed_json("tokenize", self.model, "--text", self.text)["ids"], list(range(1, 256)))

    def test_it_counts_tokens_and_bytes(self) -> None:
        self.text.write_text("one two")
        self.assertEqual(self.succeed("tokenize", self.model, "--text", self.text), "7 tokens, 7 bytes\n")

    def test_no_bos_is_added(self) -> None:
        with_bos = self.write_model("bos.gguf", "--add-bos")
        self.text.write_text("ab")
        self.assertEqual(self.succeed_json("tokenize", with_bos, "--text", self.text)["ids"], [97, 98])

    def test_strings_are_removed_first_in_the_order_given(self) -> None:
        self.text.write_text("a<unk>b<un<unk>k>c@")
        found = self.succeed_json("tokenize", "--remove", "<unk>", "--remove", "@", self.model, "--text", self.text)
        self.assertEqual(bytes(found["ids"]).decode(), "ab<unk>c")

    def test_a_text_of_which_nothing_is_left_is_empty(self) -> None:
        self.text.write_text("@@@")
        self.expect_error(1, ["text.txt", "the text is empty"], "tokenize", self.model, "--text", self.text, "--remove",
                          "@")

    def test_weights_are_not_needed(self) -> None:
        broken = self.write_model("nan.gguf", "--nan", "blk.0.attn_q.weight")
        self.assertEqual(self.succeed("tokenize", broken, "--text", self.text), "3000 tokens, 3000 bytes\n")


if __name__ == "__main__":
    main()
