"""What the tests of `kvquant eval` share."""

import json
import pathlib

from tool_case import ToolCase, read_npy

ROW_NAMES = {"name", "perplexity", "delta_percent", "delta_nll", "delta_nll_se", "kl_mean", "kl_p999", "top1_agreement",
             "bits_per_element", "bits_per_element_32k"}


class EvalCase(ToolCase):
    def evaluate(self, *options: str | pathlib.Path, model: pathlib.Path | None = None) -> tuple[dict, list]:
        """The JSON and the losses [rows][predictions]."""
        dump = self.folder / "nll.npy"
        found = self.succeed_json("eval", model or self.model, "--text", self.text, "--dump-nll", dump, *options)
        losses = read_npy(dump)
        self.assertEqual([len(losses), len(losses[0])], [len(found["rows"]), found["predictions"]])
        return found, losses

    def rows(self, *options: str | pathlib.Path) -> dict[str, dict]:
        return {row["name"]: row for row in self.evaluate(*options)[0]["rows"]}

    def same_at_any_number_of_threads(self, *options: str | pathlib.Path) -> None:
        results = []
        for threads in ("1", "2", "3"):
            found, _ = self.evaluate(*options, "--threads", threads)
            results.append((json.dumps(found), (self.folder / "nll.npy").read_bytes()))
        self.assertEqual(results[1:], results[:1] * 2)
