"""kvquant.hf's cache in transformers' models: logits and answers, against transformers' own."""

from __future__ import annotations

import copy
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import kvquant
import pytest

torch = pytest.importorskip("torch")
pytest.importorskip("transformers")

import kvquant.hf
from hf_models import CACHE, KINDS, VOCABULARY, distance, logits_of, tiny, tokens
from transformers import DynamicCache, PreTrainedModel

PROMPT, ALL = 150, 170  # two pages and a part; beyond every window
EXACT = 3e-3  # relative, of logits: keys and values are rounded to binary16


@pytest.fixture(autouse=True)
def _without_gradients() -> Iterator[None]:
    with torch.no_grad():
        yield


def exactly(model: PreTrainedModel, pairing: str = "half_split") -> kvquant.hf.Attached:
    return kvquant.hf.attach(model, kvquant.Artifact.exact(kvquant.hf.shape_of(model, pairing=pairing)))


@pytest.fixture(scope="module")
def llama() -> PreTrainedModel:
    return tiny("llama")


@pytest.fixture(scope="module")
def artifact(llama: PreTrainedModel) -> kvquant.Artifact:
    with torch.enable_grad():
        return kvquant.hf.calibrate(llama, windows=tokens(256, 4, seed=8).tolist(), format="nuq4")


def step_by_step(model: PreTrainedModel, cache: kvquant.hf.KVQuantCache, ids: torch.Tensor,
                 prompt: int) -> torch.Tensor:
    """Logits of a prompt and of each token behind it."""
    parts = [model(input_ids=ids[:, :prompt], **{CACHE: cache}).logits]
    parts += [model(input_ids=one, **{CACHE: cache}).logits for one in ids[:, prompt:].split(1, dim=1)]
    return torch.cat(parts, dim=1)


@pytest.mark.parametrize("kind", KINDS)
def test_exact_cache_gives_the_models_logits(kind: str) -> None:
    model = tiny(kind)
    ids = tokens(ALL)
    expected = logits_of(model, ids)
    with exactly(model) as attached, attached.cache(max_tokens=512) as cache:
        got = step_by_step(model, cache, ids, PROMPT)
        assert cache.get_seq_length() == ALL
        assert [len(row) for row in cache.rows] == [ALL]
    assert distance(got, expected) < EXACT
    assert distance(got[:, PROMPT:], expected[:, PROMPT:]) < EXACT
    torch.testing.assert_close(logits_of(model, ids), expected, rtol=0, atol=0)  # detached: as it was


@pytest.mark.parametrize("pairing", ["half_split", "interleaved"])
def test_prompts_in_parts_and_either_pairing(pairing: str) -> None:
    model = tiny("llama")
    ids = tokens(ALL)
    expected = logits_of(model, ids)
    with exactly(model, pairing) as attached:
        cache = attached.cache(max_tokens=512)
        parts = [model(input_ids=part, **{CACHE: cache}).logits for part in ids.split([70, 1, 64, 35], dim=1)]
        assert distance(torch.cat(parts, dim=1), expected) < EXACT


def test_a_page_is_read_quantized(llama: PreTrainedModel, artifact: kvquant.Artifact) -> None:
    ids = tokens(ALL)
    expected = logits_of(llama, ids)
    errors = {}
    for format_of, made in {"f16": kvquant.Artifact.exact(artifact.shape), "nuq4": artifact}.items():
        with kvquant.hf.attach(llama, made) as attached:
            errors[format_of] = distance(step_by_step(llama, attached.cache(max_tokens=512), ids, PROMPT), expected)
    assert errors["f16"] < EXACT < errors["nuq4"] < 0.2


def test_the_split_of_a_prompt_does_not_matter(llama: PreTrainedModel, artifact: kvquant.Artifact) -> None:
    """Of the same keys, values and queries, in floats: integers round queries that come alone otherwise."""
    random = torch.Generator().manual_seed(2)
    keys, values, queries = (torch.randn(2, ALL, heads, 32, generator=random) for heads in (2, 2, 4))
    with kvquant.hf.attach(llama, artifact) as attached:
        outs = []
        for split in ([ALL], [3, 1, 60, 64, 1, ALL - 129], [1] * ALL):
            cache = attached.cache(max_tokens=512, backend="cpu-float")
            parts = zip(*(x.split(split, dim=1) for x in (keys, values, queries)), strict=True)
            outs.append(torch.cat([cache.append_and_attend(0, *part, None, None, 0.2) for part in parts], dim=1))
    assert torch.equal(outs[0], outs[1]) and torch.equal(outs[0], outs[2])


@pytest.mark.parametrize("kind", ["llama", "gemma3", "mistral"])
def test_rows_padded_on_the_left(kind: str) -> None:
    model = tiny(kind)
    ids, pads = tokens(ALL, rows=3), [0, 17, 100]
    mask = torch.ones_like(ids)
    for row, pad in enumerate(pads):
        ids[row, :pad], mask[row, :pad] = 0, 0
    positions = (mask.cumsum(-1) - 1).clamp(min=0)
    with exactly(model) as attached, attached.cache(max_tokens=1024) as cache:
        parts = [model(input_ids=ids[:, :PROMPT], attention_mask=mask[:, :PROMPT], position_ids=positions[:, :PROMPT],
                       **{CACHE: cache}).logits]
        parts += [model(input_ids=ids[:, i:i + 1], attention_mask=mask[:, :i + 1], position_ids=positions[:, i:i + 1],
                        **{CACHE: cache}).logits for i in range(PROMPT, ALL)]
        assert [len(row) for row in cache.rows] == [ALL - pad for pad in pads]
    got = torch.cat(parts, dim=1)
    for row, pad in enumerate(pads):
        assert distance(got[row, pad:], logits_of(model, ids[row:row + 1, pad:])[0]) < EXACT


def test_generate_with_padding_is_generate_of_each_row(llama: PreTrainedModel) -> None:
    ids, pads = tokens(90, rows=2), [0, 31]
    mask = torch.ones_like(ids)
    ids[1, :31], mask[1, :31] = 0, 0
    alone = [llama.generate(ids[row:row + 1, pad:], max_new_tokens=20, do_sample=False)[0, 90 - pad:]
             for row, pad in enumerate(pads)]
    with exactly(llama) as attached:
        cache = attached.cache(max_tokens=512)
        together = llama.generate(ids, attention_mask=mask, **{CACHE: cache}, max_new_tokens=20, do_sample=False)
    for row in range(2):
        assert together[row, 90:].tolist() == alone[row].tolist()


@pytest.mark.parametrize("kind", ["llama", "mistral", "qwen2", "qwen3", "gemma3"])
def test_generate_with_a_quantized_cache(kind: str) -> None:
    model = tiny(kind)
    with torch.enable_grad():
        made = kvquant.hf.calibrate(model, windows=tokens(160, 2, seed=8).tolist(), format="nuq4")
    ids = tokens(100)
    with kvquant.hf.attach(model, made) as attached:
        cache = attached.cache(max_tokens=512)
        answer = model.generate(ids, **{CACHE: cache}, max_new_tokens=40, do_sample=False)
        assert answer.shape == (1, 140) and cache.get_seq_length() == 139  # the last token was not read
        assert len(cache.rows[0]) == 139
        cache.reset()
        again = model.generate(ids, **{CACHE: cache}, max_new_tokens=40, do_sample=False)
        assert torch.equal(answer, again)


def test_beams_share_their_prompt(llama: PreTrainedModel) -> None:
    ids = tokens(130)
    choices = {"num_beams": 4, "max_new_tokens": 12, "do_sample": False}
    expected = llama.generate(ids, **choices)
    with exactly(llama) as attached:
        cache = attached.cache(max_tokens=4 * 192)
        assert torch.equal(llama.generate(ids, **{CACHE: cache}, **choices), expected)
        assert len(cache.rows) == 4 and all(len(row) == len(cache.rows[0]) for row in cache.rows)


def test_assisted_decoding_goes_back(llama: PreTrainedModel) -> None:
    ids = tokens(40).repeat(1, 3)
    choices = {"max_new_tokens": 30, "do_sample": False}
    expected = llama.generate(ids, **choices)
    with exactly(llama) as attached:
        cache = attached.cache(max_tokens=512)
        got = llama.generate(ids, **{CACHE: cache}, prompt_lookup_num_tokens=4, **choices)
    assert torch.equal(got, expected)


def test_crop_forgets(llama: PreTrainedModel) -> None:
    ids, others = tokens(ALL), tokens(ALL, seed=6)
    expected = logits_of(llama, ids)[:, 140:]
    with exactly(llama) as attached:
        cache = attached.cache(max_tokens=512)
        llama(input_ids=torch.cat([ids[:, :140], others[:, :25]], dim=1), **{CACHE: cache})
        cache.crop(-25)
        assert cache.get_seq_length() == 140
        got = llama(input_ids=ids[:, 140:], **{CACHE: cache}).logits
        assert distance(got, expected) < EXACT
        cache.crop(100)  # as earlier versions of transformers say it
        assert cache.get_seq_length() == len(cache.rows[0]) == 100
        with pytest.raises(kvquant.Error, match="crop: 101 of 100 columns"):
            cache.crop(-101)


def test_one_prompt_many_answers(llama: PreTrainedModel, artifact: kvquant.Artifact) -> None:
    prompt, ends = tokens(PROMPT), [tokens(20, seed=seed) for seed in (1, 2)]
    with kvquant.hf.attach(llama, artifact) as attached:
        cache = attached.cache(max_tokens=1024)
        llama(input_ids=prompt, **{CACHE: cache})
        answers = [llama(input_ids=end, **{CACHE: copy.deepcopy(cache)}).logits for end in ends]
        assert cache.get_seq_length() == PROMPT
        for end, answer in zip(ends, answers, strict=True):
            whole = llama(input_ids=torch.cat([prompt, end], dim=1), **{CACHE: attached.cache(max_tokens=512)}).logits
            torch.testing.assert_close(answer, whole[:, PROMPT:], rtol=1e-4, atol=1e-4)


def test_rows_are_repeated_and_selected(llama: PreTrainedModel) -> None:
    ids, ends = tokens(PROMPT, rows=2), tokens(10, rows=2, seed=9)
    expected = logits_of(llama, torch.cat([ids[[1, 0]], ends], dim=1))[:, PROMPT:]
    with exactly(llama) as attached:
        cache = attached.cache(max_tokens=2048)
        llama(input_ids=ids, **{CACHE: cache})
        cache.batch_repeat_interleave(2)
        cache.batch_select_indices(torch.tensor([3, 0]))
        assert cache.batch_size == 2
        got = llama(input_ids=ends, **{CACHE: cache}).logits
        assert distance(got, expected) < EXACT


def test_bfloat16(llama: PreTrainedModel) -> None:
    model = tiny("llama").to(torch.bfloat16)
    for module in model.modules():  # .to() rounds what from_pretrained(dtype=...) leaves in float32
        if isinstance(getattr(module, "inv_freq", None), torch.Tensor):
            with pytest.raises(kvquant.Error, match="inv_freq are not those of the configuration"):
                exactly(model)
            module.inv_freq = llama.model.rotary_emb.inv_freq.clone()
    ids = tokens(ALL)
    expected = logits_of(model, ids)
    with exactly(model) as attached:
        got = step_by_step(model, attached.cache(max_tokens=512), ids, PROMPT)
    assert got.dtype == torch.bfloat16
    assert distance(got.float(), expected.float()) < 0.1


def test_a_cache_that_is_full_says_so_and_goes_on(llama: PreTrainedModel) -> None:
    ids = torch.cat([tokens(100), tokens(5, seed=2)], dim=1)
    expected = logits_of(llama, ids)[:, 100:]
    with exactly(llama) as attached:
        cache = attached.cache(max_tokens=128)
        llama(input_ids=tokens(100), **{CACHE: cache})
        with pytest.raises(kvquant.Error) as full:
            llama(input_ids=tokens(200), **{CACHE: cache})
        assert full.value.code == "out_of_pages"
        assert cache.get_seq_length() == len(cache.rows[0]) == 100
        assert distance(llama(input_ids=ids[:, 100:], **{CACHE: cache}).logits, expected) < EXACT


def refused(model: PreTrainedModel, text: str, code: str, **choices: object) -> None:
    with pytest.raises(kvquant.Error, match=text) as raised:
        model(**{"input_ids": tokens(8, rows=2), **choices})
    assert raised.value.code == code


def test_what_is_not_supported_is_refused_by_name(llama: PreTrainedModel) -> None:
    with exactly(llama) as attached:
        cache = attached.cache(max_tokens=512)
        refused(llama, "called without its cache", "unsupported")
        refused(llama, "called without its cache", "unsupported", **{CACHE: DynamicCache()})
        mask = torch.ones(2, 8, dtype=torch.long)
        mask[1, 5:] = 0
        refused(llama, "expected padding on the left alone", "unsupported", **{CACHE: cache}, attention_mask=mask)
        refused(llama, "expected \\(batch, columns\\)", "unsupported", **{CACHE: cache},
                attention_mask=torch.zeros(2, 1, 8, 8))
        mask[1] = torch.tensor([0, 0, 0, 1, 1, 1, 1, 1])
        refused(llama, "row 1 goes on at 3, expected 0", "unsupported", **{CACHE: cache}, attention_mask=mask)
        with torch.enable_grad():
            refused(llama, "under torch.no_grad", "unsupported", **{CACHE: cache})
        assert cache.get_seq_length() == 0
        llama(input_ids=tokens(8, rows=2), **{CACHE: cache})
        refused(llama, "a batch of 3 rows in a cache of 2", "bad_shape", **{CACHE: cache}, input_ids=tokens(8, rows=3))
        refused(llama, "row 1 has 7 tokens in the 8 columns so far", "bad_value", **{CACHE: cache},
                attention_mask=torch.tensor([[1] * 16, [0] + [1] * 15]))
        with pytest.raises(kvquant.Error, match="attached already"):
            exactly(llama)
        with pytest.raises(kvquant.Error, match="stays on the CPU"):
            cache.offload(0)
    refused(llama, "the model was detached", "bad_value", **{CACHE: cache})


def test_output_attentions_are_refused(llama: PreTrainedModel) -> None:
    with exactly(llama) as attached:
        refused(llama, "output_attentions", "unsupported", **{CACHE: attached.cache(max_tokens=512)},
                output_attentions=True)


def test_other_models_artifacts_are_refused(llama: PreTrainedModel, artifact: kvquant.Artifact) -> None:
    other = tiny("llama")
    other.model.layers[1].mlp.up_proj.weight += 0.01
    with pytest.raises(kvquant.Error, match="made for the model of hash") as raised:
        kvquant.hf.attach(other, artifact)
    assert raised.value.code == "bad_format"
    kvquant.hf.attach(other, artifact, model_hash=artifact.origin.model_hash).detach()
    for kind, text in {"llama3": "keys are rotated by", "mistral": "3 local layers"}.items():
        with pytest.raises(kvquant.Error, match=text):
            kvquant.hf.attach(tiny(kind), artifact)
    with pytest.raises(kvquant.Error, match="attn_logit_softcapping of 50"):
        model = tiny("gemma2", attn_logit_softcapping=50.0)
        kvquant.hf.attach(model, kvquant.Artifact.exact(kvquant.hf.shape_of(model)))


def test_hooks_are_gone_after_detach(llama: PreTrainedModel) -> None:
    def hooks() -> int:
        return sum(len(module._forward_hooks) + len(module._forward_pre_hooks) for module in llama.modules())

    before, implementation = hooks(), llama.config._attn_implementation
    attached = exactly(llama)
    assert hooks() == before + llama.config.num_hidden_layers and llama.config._attn_implementation == "kvquant"
    attached.detach()
    attached.detach()
    assert hooks() == before and llama.config._attn_implementation == implementation
    with pytest.raises(kvquant.Error, match="was detached"):
        attached.cache(max_tokens=64)
    assert llama(input_ids=tokens(4)).logits.shape == (1, 4, VOCABULARY)


def test_the_documentations_example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch,
                                    capsys: pytest.CaptureFixture[str]) -> None:
    example = Path(__file__).resolve().parents[3] / "examples" / "python" / "hugging_face.py"
    monkeypatch.setattr(sys, "argv", [str(example), str(tmp_path)])
    with torch.enable_grad():
        runpy.run_path(str(example), run_name="__main__")
    assert "2 answers, " in capsys.readouterr().out
    made = {path.name for path in tmp_path.glob("*.kvq")}
    assert made == {"model.kvq", "mixed-2.5.kvq", "mixed-3.kvq", "mixed-4.kvq"}
