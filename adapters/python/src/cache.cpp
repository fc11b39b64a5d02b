#include "adapters/python/src/cache.hpp"

#include <optional>
#include <string>

#include "adapters/python/src/bindings.hpp"
#include "engines/artifact_label.hpp"
#include "engines/engines.hpp"
#include "kvquant/calibrate/passthrough_artifact.hpp"

namespace kvquant::python {

namespace {

using namespace nb::literals;

using cache_ptr = std::shared_ptr<cache_state>;
using sequence_ptr = std::shared_ptr<sequence_state>;

/// What Python holds.
struct cache_handle {
  cache_ptr state;
  artifact_info info;
  std::string backend;
};
struct sequence_handle {
  sequence_ptr state;
  artifact_info info;

  model_shape const& shape() const { return info.shape; }
};

struct cache_choices {
  std::size_t max_tokens, max_sequences;
  std::optional<int> sinks;
  int recent_pages, rewind_tokens, threads;
};

cache_handle open_cache(any_artifact const& artifact, std::optional<std::string> const& backend,
                        cache_choices const& choices) {
  nb::gil_scoped_release const released;
  std::string const name = backend.value_or(std::string(default_backend()));
  auto made = make_engine(name, artifact,
                          {.max_tokens = choices.max_tokens,
                           .sinks = choices.sinks,
                           .recent_pages = choices.recent_pages,
                           .max_sequences = choices.max_sequences,
                           .rewind_tokens = choices.rewind_tokens});
  artifact_info const info = made->info();
  return {std::make_shared<cache_state>(std::move(made), choices.threads), info, name};
}

any_artifact artifact_from(nb::handle given) {
  if (any_artifact const* artifact = nullptr; nb::try_cast(given, artifact) && artifact != nullptr) return *artifact;
  std::filesystem::path path;
  if (!nb::try_cast(given, path))
    throw nb::type_error(
        text("artifact: a ", nb::type_name(given.type()).c_str(), ", expected an Artifact or the path of one").c_str());
  nb::gil_scoped_release const released;
  return load_any_artifact(path);
}

sequence_handle adopt(cache_ptr const& owner, artifact_info const& info, std::unique_ptr<engine_sequence> opened) {
  auto state = std::make_shared<sequence_state>(owner, std::move(opened));
  owner->adopt(state);
  return {std::move(state), info};
}

nb::dict to_dict(byte_report const& it) {
  nb::dict all;
  all["codes"] = it.codes;
  all["value_ranges"] = it.value_ranges;
  all["slots"] = it.slots;
  all["padding"] = it.padding;
  all["sinks"] = it.sinks;
  all["tail"] = it.tail;
  all["tables"] = it.tables;
  all["page_table"] = it.page_table;
  all["slack"] = it.slack;
  all["total"] = it.total();
  return all;
}

nb::dict to_dict(clamp_counts const& it) {
  nb::dict all;
  all["keys"] = it.keys;
  all["values"] = it.values;
  all["clamped_keys"] = it.clamped_keys;
  all["clamped_values"] = it.clamped_values;
  return all;
}

void require_layer(model_shape const& shape, int layer) {
  if (layer < 0 || layer >= shape.layers)
    throw nb::index_error(text("layer ", layer, ", expected 0 to ", shape.layers - 1).c_str());
}

attend_options options_from(bool rotated, std::size_t window, float softmax_scale) {
  return {.space = rotated ? query_space::post_rope : query_space::pre_rope,
          .window = window,
          .softmax_scale = softmax_scale};
}

void append(sequence_handle const& self, int layer, nb::handle k, nb::handle v) {
  require_layer(self.shape(), layer);
  input_rows const keys(k, kv_rows("k", self.shape())), values(v, kv_rows("v", self.shape()));
  nb::gil_scoped_release const released;
  self.state->use([&](engine_sequence& it, engine&) {
    self.state->owner()->compute(
        [&](executor_ref executor) { it.append(layer, keys.view(), values.view(), executor); });
  });
}

/// Queries of one sequence and where their answers go.
struct query {
  input_rows q;
  output_rows out;

  query(nb::handle given, nb::handle out_given, model_shape const& shape)
      : q(given, query_rows("q", shape)), out(out_given, query_rows("out", shape), q.rows(), q.by_heads()) {}
};

nb::object attend(sequence_handle const& self, int layer, nb::handle q, nb::handle out, bool rotated,
                  std::size_t window, float softmax_scale, bool sums) {
  require_layer(self.shape(), layer);
  query const asked(q, out, self.shape());
  auto const heads = static_cast<std::size_t>(self.shape().q_heads);
  std::optional<new_array<float>> score_max, score_sum;
  attend_request request{.q = asked.q.view(), .out = asked.out.view()};
  request.options = options_from(rotated, window, softmax_scale);
  if (sums) {
    request.score_max = {score_max.emplace(std::vector{asked.q.rows(), heads}).data(), asked.q.rows(), heads};
    request.score_sum = {score_sum.emplace(std::vector{asked.q.rows(), heads}).data(), asked.q.rows(), heads};
  }
  {
    nb::gil_scoped_release const released;
    self.state->use([&](engine_sequence& it, engine& cache) {
      request.sequence = &it;
      self.state->owner()->compute([&](executor_ref executor) { cache.attend(layer, {&request, 1}, executor); });
    });
  }
  if (!sums) return asked.out.python();
  return nb::make_tuple(asked.out.python(), score_max->python(), score_sum->python());
}

nb::object append_and_attend(sequence_handle const& self, int layer, nb::handle k, nb::handle v, nb::handle q,
                             nb::handle out, bool rotated, std::size_t window, float softmax_scale) {
  require_layer(self.shape(), layer);
  input_rows const keys(k, kv_rows("k", self.shape())), values(v, kv_rows("v", self.shape()));
  query const asked(q, out, self.shape());
  {
    nb::gil_scoped_release const released;
    self.state->use([&](engine_sequence& it, engine&) {
      self.state->owner()->compute([&](executor_ref executor) {
        it.append_and_attend(layer, keys.view(), values.view(), asked.q.view(), asked.out.view(),
                             options_from(rotated, window, softmax_scale), executor);
      });
    });
  }
  return asked.out.python();
}

/// One step of several sequences.
nb::list attend_batch(cache_handle const& self, int layer, std::vector<std::pair<sequence_handle*, nb::object>> batch,
                      nb::handle out, bool rotated, std::size_t window, float softmax_scale) {
  require_layer(self.info.shape, layer);
  std::optional<std::vector<nb::object>> outs;
  if (!out.is_none()) outs = nb::cast<std::vector<nb::object>>(out);
  if (outs && outs->size() != batch.size())
    throw nb::value_error(text("out: ", outs->size(), " arrays, expected ", batch.size()).c_str());
  std::vector<query> asked;
  asked.reserve(batch.size());
  std::vector<sequence_ptr> sequences;
  for (std::size_t i = 0; i < batch.size(); ++i) {
    if (batch[i].first->state->owner() != self.state)
      throw nb::value_error(text("batch: sequence ", i, " is one of another cache").c_str());
    sequences.push_back(batch[i].first->state);
    asked.emplace_back(batch[i].second, outs ? nb::handle((*outs)[i]) : nb::handle(Py_None), self.info.shape);
  }
  {
    nb::gil_scoped_release const released;
    self.state->use([&](engine& cache) {
      locked_sequences const locked(sequences);
      std::vector<attend_request> requests(batch.size());
      for (std::size_t i = 0; i < batch.size(); ++i) {
        requests[i].sequence = &locked[i];
        requests[i].q = asked[i].q.view();
        requests[i].out = asked[i].out.view();
        requests[i].options = options_from(rotated, window, softmax_scale);
      }
      self.state->compute([&](executor_ref executor) { cache.attend(layer, requests, executor); });
    });
  }
  nb::list answers;
  for (query const& it : asked) answers.append(it.out.python());
  return answers;
}

std::pair<nb::object, nb::object> read(sequence_handle const& self, int layer, std::size_t first,
                                       std::optional<std::size_t> count) {
  require_layer(self.shape(), layer);
  std::size_t rows = 0;
  {
    nb::gil_scoped_release const released;
    std::size_t const tokens = self.state->use([&](engine_sequence& it, engine&) { return it.tokens(); });
    require(first <= tokens && count.value_or(0) <= tokens - first, errc::bad_value, "read: ", count.value_or(0),
            " tokens from ", first, " on, the sequence has ", tokens);
    rows = count.value_or(tokens - first);
  }
  row_shape const shape = kv_rows("", self.shape());
  output_rows const k(nb::none(), shape, rows, true), v(nb::none(), shape, rows, true);
  {
    nb::gil_scoped_release const released;
    self.state->use([&](engine_sequence& it, engine&) { it.read(layer, first, k.view(), v.view()); });
  }
  return {k.python(), v.python()};
}

/// A member of the sequence, called without Python's lock.
template <class F>
auto call(sequence_handle const& self, F&& f) {
  nb::gil_scoped_release const released;
  return self.state->use([&](engine_sequence& it, engine&) { return f(it); });
}
template <class F>
auto call(cache_handle const& self, F&& f) {
  nb::gil_scoped_release const released;
  return self.state->use([&](engine& it) { return f(it); });
}

std::size_t tokens_of(sequence_handle const& self) {
  return call(self, [](engine_sequence& it) { return it.tokens(); });
}

/// `close`, at once or at the end of a `with`.
template <class Handle>
void bind_closing(nb::class_<Handle>& handle, char const* what) {
  auto const close = [](Handle const& it) {
    nb::gil_scoped_release const released;
    it.state->close();
  };
  handle.def("close", close, what)
      .def(
          "__enter__", [](Handle& it) -> Handle& { return it; }, nb::rv_policy::reference)
      .def(
          "__exit__", [close](Handle const& it, nb::args const&) { close(it); },
          nb::sig("def __exit__(self, *exception: object) -> None"));
}

void bind_opening(nb::class_<cache_handle>& cache) {
  cache
      .def(
          "__init__",
          [](cache_handle* self, nb::object const& artifact, std::optional<std::string> const& backend,
             std::size_t max_tokens, std::size_t max_sequences, std::optional<int> sinks, int recent_pages,
             int rewind_tokens, int threads) {
            new (self)
                cache_handle(open_cache(artifact_from(artifact), backend,
                                        {max_tokens, max_sequences, sinks, recent_pages, rewind_tokens, threads}));
          },
          "artifact"_a, "backend"_a = nb::none(), nb::kw_only(), "max_tokens"_a, "max_sequences"_a = 0,
          "sinks"_a = nb::none(), "recent_pages"_a = 0, "rewind_tokens"_a = 64, "threads"_a = 0,
          nb::sig("def __init__(self, artifact: Artifact | str | os.PathLike, backend: str | None = None, *, "
                  "max_tokens: int, max_sequences: int = 0, sinks: int | None = None, recent_pages: int = 0, "
                  "rewind_tokens: int = 64, threads: int = 0) -> None"),
          "artifact: one, or the path of one. backend: one of backends(), the fastest if not given. max_tokens: that "
          "pages have room for, of all sequences together. max_sequences: at a time, if it is known; models with local "
          "layers need less then. sinks: first tokens that stay exact; the artifact's if not given. recent_pages: "
          "whole "
          "pages of 64 latest tokens that stay exact beside the one being filled. rewind_tokens: by which truncate can "
          "go back where layers are local. threads: 0 for one of each core.")
      .def_static(
          "exact",
          [](model_shape const& shape, std::optional<std::string> const& backend, std::size_t max_tokens,
             std::size_t max_sequences, int rewind_tokens, int threads) {
            return open_cache(make_passthrough_artifact(shape), backend,
                              {max_tokens, max_sequences, std::nullopt, 0, rewind_tokens, threads});
          },
          "shape"_a, "backend"_a = nb::none(), nb::kw_only(), "max_tokens"_a, "max_sequences"_a = 0,
          "rewind_tokens"_a = 64, "threads"_a = 0, "A cache of binary16 throughout, for comparison.")
      .def(
          "open",
          [](cache_handle const& self, std::size_t expected_tokens) {
            nb::gil_scoped_release const released;
            return adopt(self.state, self.info, self.state->use([&](engine& it) { return it.open(expected_tokens); }));
          },
          "expected_tokens"_a = 0, "An empty sequence, with page tables for as many tokens.")
      .def(
          "load",
          [](cache_handle const& self, std::filesystem::path const& path) {
            nb::gil_scoped_release const released;
            return adopt(self.state, self.info, self.state->use([&](engine& it) { return it.load(path); }));
          },
          "path"_a, "A sequence that Sequence.save wrote, in a cache of the same artifact.");
}

void bind_cache_facts(nb::class_<cache_handle>& cache) {
  cache.def_prop_ro("backend", [](cache_handle const& it) { return it.backend; })
      .def_prop_ro("shape", [](cache_handle const& it) { return it.info.shape; })
      .def_prop_ro("spec", [](cache_handle const& it) { return it.info.spec; })
      .def_prop_ro("label", [](cache_handle const& it) { return label_of(it.info); })
      .def_prop_ro("origin", [](cache_handle const& it) { return it.info.origin; })
      .def_prop_ro(
          "sinks", [](cache_handle const& it) { return call(it, [](engine& of) { return of.sinks(); }); },
          "First tokens that stay exact.")
      .def(
          "bytes", [](cache_handle const& it) { return to_dict(call(it, [](engine& of) { return of.bytes(); })); },
          nb::sig("def bytes(self) -> dict[str, int]"),
          "Bytes allocated for pages and tables, by what they are for; of sequences see Sequence.bytes.")
      .def(
          "clamps", [](cache_handle const& it) { return to_dict(call(it, [](engine& of) { return of.clamps(); })); },
          nb::sig("def clamps(self) -> dict[str, int]"),
          "Of `adaptive`: values sealed so far, and how many of them lay beyond what calibration had seen.")
      .def_prop_ro("closed", [](cache_handle const& it) { return it.state->is_closed(); })
      .def("__repr__", [](cache_handle const& it) {
        return text("<kvquant.Cache ", label_of(it.info), " on ", it.backend,
                    it.state->is_closed() ? ", closed>" : ">");
      });
}

void bind_attending(nb::class_<sequence_handle>& sequence) {
  sequence
      .def("append", &append, "layer"_a, "k"_a, "v"_a,
           nb::sig("def append(self, layer: int, k: Array, v: Array) -> None"),
           "Appends tokens to one layer: k (before RoPE) and v, [tokens, kv_heads, head_dim] or [tokens, kv_channels]. "
           "Where it raises, the sequence is as it was.")
      .def(
          "attend", &attend, "layer"_a, "q"_a, "out"_a.none() = nb::none(), nb::kw_only(), "rotated"_a = false,
          "window"_a = 0, "softmax_scale"_a = 0.0f, "sums"_a = false,
          nb::sig("def attend(self, layer: int, q: Array, out: NDArray[numpy.float32] | None = None, *, "
                  "rotated: bool = False, window: int = 0, softmax_scale: float = 0.0, sums: bool = False) -> "
                  "NDArray[numpy.float32] | tuple[NDArray[numpy.float32], NDArray[numpy.float32], "
                  "NDArray[numpy.float32]]"),
          "Attention from the sequence's last tokens: q [queries, q_heads, head_dim] or [queries, q_heads * head_dim], "
          "before RoPE unless rotated. Query i stands at position tokens - queries + i and sees what stands up to "
          "there. window: latest tokens that a query sees, itself included, beside the sinks; 0: all. softmax_scale: "
          "of q . k, 0 for 1 / sqrt(head_dim). Returns float32 of q's shape, or out; with sums also the greatest score "
          "and the sum of exp(score - greatest), [queries, q_heads] each.")
      .def("append_and_attend", &append_and_attend, "layer"_a, "k"_a, "v"_a, "q"_a, "out"_a.none() = nb::none(),
           nb::kw_only(), "rotated"_a = false, "window"_a = 0, "softmax_scale"_a = 0.0f,
           nb::sig("def append_and_attend(self, layer: int, k: Array, v: Array, q: Array, "
                   "out: NDArray[numpy.float32] | None = None, *, rotated: bool = False, window: int = 0, "
                   "softmax_scale: float = 0.0) -> NDArray[numpy.float32]"),
           "Appends tokens and attends from each of them as if they came one by one. Shapes as for append and attend.")
      .def("read", &read, "layer"_a, "first"_a = 0, "count"_a = nb::none(),
           nb::sig("def read(self, layer: int, first: int = 0, count: int | None = None) -> "
                   "tuple[NDArray[numpy.float32], NDArray[numpy.float32]]"),
           "What the cache holds of a layer's tokens from first on: keys (before RoPE) and values, [tokens, kv_heads, "
           "head_dim], as attention reads them.");
}

void bind_sequence(nb::module_& module) {
  nb::class_<sequence_handle> sequence(module, "Sequence",
                                       "The tokens of one sequence, in all layers. Keys are given before RoPE. One "
                                       "call at a time uses a sequence; calls "
                                       "from other threads wait.");
  bind_attending(sequence);
  bind_closing(sequence, "Gives its pages back. Later use raises ValueError.");
  sequence.def_prop_ro("tokens", &tokens_of)
      .def("__len__", &tokens_of)
      .def(
          "fork",
          [](sequence_handle const& self) {
            auto forked = call(self, [](engine_sequence& it) { return it.fork(); });
            return adopt(self.state->owner(), self.info, std::move(forked));
          },
          "Another sequence with the same tokens, which shares the pages.")
      .def(
          "truncate",
          [](sequence_handle const& self, std::size_t tokens) {
            call(self, [&](engine_sequence& it) { it.truncate(tokens); });
          },
          "tokens"_a, "Cuts every layer to its first tokens.")
      .def(
          "drop",
          [](sequence_handle const& self, std::size_t first, std::size_t count) {
            call(self, [&](engine_sequence& it) { it.drop(first, count); });
          },
          "first"_a, "count"_a,
          "Forgets tokens [first, first + count), a range of whole sealed pages of 64; those behind move to the front.")
      .def(
          "reserve",
          [](sequence_handle const& self, std::size_t tokens) {
            call(self, [&](engine_sequence& it) { it.reserve(tokens); });
          },
          "tokens"_a, "Takes the pages that as many more tokens need, so that appending them cannot run out.")
      .def(
          "save",
          [](sequence_handle const& self, std::filesystem::path const& path) {
            call(self, [&](engine_sequence& it) { it.save(path); });
          },
          "path"_a, "Writes the sequence; the file appears whole or not at all.")
      .def(
          "bytes",
          [](sequence_handle const& self) {
            return to_dict(call(self, [](engine_sequence& it) { return it.bytes(); }));
          },
          nb::sig("def bytes(self) -> dict[str, int]"),
          "Bytes allocated for it, by what they are for, as if no other shared its pages; tables included.");
}

}  // namespace

void bind_cache(nb::module_& module) {
  nb::class_<cache_handle> cache(module, "Cache",
                                 "The packed keys and values of many sequences of one model, in all layers.");
  bind_sequence(module);
  bind_opening(cache);
  bind_cache_facts(cache);
  bind_closing(cache,
               "Frees all memory, the sequences' too; waits for calls in progress. Later use raises ValueError.");
  cache.def("attend", &attend_batch, "layer"_a, "batch"_a, "out"_a.none() = nb::none(), nb::kw_only(),
            "rotated"_a = false, "window"_a = 0, "softmax_scale"_a = 0.0f,
            nb::sig("def attend(self, layer: int, batch: Iterable[tuple[Sequence, Array]], "
                    "out: Iterable[NDArray[numpy.float32]] | None = None, *, rotated: bool = False, window: int = 0, "
                    "softmax_scale: float = 0.0) -> list[NDArray[numpy.float32]]"),
            "Sequence.attend of several sequences at once: pairs of a sequence and its queries.");
}

}  // namespace kvquant::python
