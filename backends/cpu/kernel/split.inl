// One task: some tiles of one KV head for a block of queries.

/// Calls `f(std::integral_constant<std::size_t, count>)` for a count from 1 to `largest_together`.
template <class F>
inline void with_count(std::size_t count, F&& f) {
  static_assert(largest_together == 4);
  switch (count) {
    case 1: return f(std::integral_constant<std::size_t, 1>{});
    case 2: return f(std::integral_constant<std::size_t, 2>{});
    case 3: return f(std::integral_constant<std::size_t, 3>{});
    default: return f(std::integral_constant<std::size_t, 4>{});
  }
}

/// A task's queries, in chunks that go through the inner loops side by side.
inline std::span<query_chunk> start_chunks(split_task const& task, kernel_scratch& scratch) {
  std::size_t const group = task.group(), queries = task.what.queries.rows * group;
  std::size_t const count = (queries + largest_together - 1) / largest_together;
  if (scratch.chunks.size() < count) scratch.chunks.resize(count);
  for (std::size_t i = 0; i < count; ++i) {
    query_chunk& chunk = scratch.chunks[i];
    chunk.count = std::min(largest_together, queries - i * largest_together);
    for (std::size_t part = 0; part < slot_parts(chunk.count); ++part)
      std::fill_n(chunk.sparse_out + part * largest_head_dim, task.head_dim() * slot_lanes(chunk.count), 0.0f);
    for (std::size_t n = 0; n < chunk.count; ++n) {
      query_state& q = chunk.queries[n];
      std::size_t const index = i * largest_together + n;
      std::fill_n(q.out, task.head_dim(), 0.0f);
      q.l = 0;
      q.m = -std::numeric_limits<float>::infinity();
      q.row = index / group;
      q.head = index % group;
    }
  }
  return {scratch.chunks.data(), count};
}

template <class F>
inline void for_each_query(std::span<query_chunk> chunks, F&& f) {
  for (query_chunk& chunk : chunks)
    for (std::size_t n = 0; n < chunk.count; ++n) f(chunk.queries[n]);
}

inline void step_queries(split_task const& task, std::span<query_chunk> chunks) {
  rotation_tables const& r = task.model.rotation;
  for_each_query(chunks,
                 [&](query_state& q) { turn_by(q.pairs, r.step_cos.data(), r.step_sin.data(), padded(task.pairs())); });
}

/// `k`, `v`: all rows of a run.
inline void attend_exact_run(split_task const& task, run where, std::size_t first, std::size_t last,
                             view2d<half const> k, view2d<half const> v, std::span<query_chunk> chunks,
                             kernel_scratch& scratch) {
  std::size_t const d = task.head_dim();
  read_ahead const nothing;
  for (std::size_t tile = first; tile < last; ++tile) {
    if (tile > first) step_queries(task, chunks);
    tile_place const place = place_of(task.cache(), where, tile);
    if (!any_visible(task.what.queries, where, place)) continue;
    auto const rows = [&](view2d<half const> x) {
      return x.middle_rows(tile * page_tokens, place.tokens).middle_cols(task.what.kv_head * d, d);
    };
    for (query_chunk& chunk : chunks)
      with_count(chunk.count, [&](auto count) {
        attend_exact_tile<count()>(task, rows(k), rows(v), where, place, chunk, scratch, nothing);
      });
  }
}

/// Pages of codes of `KBits` and `VBits` bits, or `bits_by_chunk`, in integers.
template <int KBits, int VBits>
class integer_pages {
 public:
  integer_pages(split_task const& task, kernel_scratch& scratch)
      : task_(task),
        scratch_(scratch),
        keys_(task.layer.key_heads[task.what.kv_head]),
        values_(task.layer.value_heads[task.what.kv_head]),
        key_codes_(keys_.order, keys_.levels),
        value_codes_(values_.order, values_.levels) {
    bool const turn_keys = task.policy().turn_keys;
    if constexpr (keys_are_ordered) {
      order_steps(task.model.rotation, keys_.order, scratch);
      if (!turn_keys) order_angles(task.model.rotation, keys_.order, scratch);
    }
    if (!turn_keys) return;
    if (task.layer.turns.empty()) build_turns(keys_, task.model.rotation, scratch.turns);
    turns_ = task.layer.turns.empty() ? &scratch.turns : &task.layer.turns[task.what.kv_head];
  }

  /// Queries stand at the base of page `first`.
  void operator()(std::size_t first, std::size_t last, std::span<query_chunk> chunks) {
    for_each_query(chunks, [&](query_state& q) {
      std::fill_n(q.dense, dense_sums(), 0.0f);
      q.offset = 0;
      set_slot_unit(q, all_pairs());
      if constexpr (keys_are_ordered) order_pairs(q);
      set_units(pairs_of(q), keys_, all_pairs(), turns_ != nullptr ? largest_entry12 : 1, q.unit);
    });
    bool const one_chunk = chunks.size() == 1;
    std::size_t const group = one_chunk ? task_.policy().pages_per_group : 1;
    for (std::size_t page = first; page < last; page += group) {
      set_pages(page, std::min(group, last - page));
      if (page > first) step(chunks);
      if (one_chunk)
        with_count(chunks[0].count, [&](auto count) { attend_group<count()>(page, chunks[0]); });
      else
        attend_page(page, chunks);
    }
    for_each_query(chunks, [&](query_state& q) {
      finish_values<side_codes<VBits>::block_channels>(values_, task_.head_dim(), q);
    });
  }

 private:
  static constexpr bool keys_are_ordered = KBits == bits_by_chunk;

  std::size_t all_pairs() const { return padded(task_.pairs()); }
  std::size_t dense_sums() const { return task_.head_dim() * lanes / side_codes<VBits>::block_channels; }

  /// In the order of the key codes.
  static query_pairs const& pairs_of(query_state const& q) { return keys_are_ordered ? q.ordered : q.pairs; }
  void order_pairs(query_state& q) const {
    std::fill_n(q.ordered.a, all_pairs(), 0.0f);
    std::fill_n(q.ordered.b, all_pairs(), 0.0f);
    for (std::size_t place = 0; place < task_.pairs(); ++place) {
      q.ordered.a[place] = q.pairs.a[keys_.order.at[place]];
      q.ordered.b[place] = q.pairs.b[keys_.order.at[place]];
    }
  }
  /// To the next page. Slots know pairs in their own order.
  void step(std::span<query_chunk> chunks) {
    if (!keys_are_ordered || task_.model.geometry.k_slots > 0) step_queries(task_, chunks);
    if constexpr (keys_are_ordered)
      for_each_query(chunks,
                     [&](query_state& q) { turn_by(q.ordered, scratch_.step_cos, scratch_.step_sin, all_pairs()); });
  }

  /// What is read ahead may belong to the next task: it is most often this worker's next, and read soon in any case.
  void set_pages(std::size_t first, std::size_t count) {
    std::size_t const next = first + count, ahead = std::min(count, tiles_in(task_.cache(), run::pages) - next);
    for (std::size_t i = 0; i < count; ++i) pages_[i] = task_.page(first + i);
    current_ = std::span(pages_).first(count);
    for (std::size_t i = 0; i < count; ++i)
      ahead_[i] = i < ahead ? read_ahead(task_.page(next + i), task_.cache().page_bytes, task_.model.steps.count)
                            : read_ahead();
  }

  pair_angles const& angles() const { return keys_are_ordered ? scratch_.angles : task_.model.rotation.angles16; }

  template <std::size_t Queries>
  void set_entries(query_chunk const& chunk) {
    for (std::size_t n = 0; n < Queries; ++n) {
      query_state const& q = chunk.queries[n];
      if (turns_ != nullptr)
        set_turned_entries(pairs_of(q), q.unit, keys_, all_pairs(), scratch_.entries[n]);
      else
        set_pair_entries(pairs_of(q), q.unit, keys_, all_pairs(), scratch_.entries[n]);
    }
  }

  /// Whether any query of the chunk sees any token of the group; probabilities of the others are 0.
  template <std::size_t Queries>
  bool softmax(std::size_t first, query_chunk& chunk) {
    bool any = false;
    for (std::size_t n = 0; n < Queries; ++n) {
      bool seen = false;
      for (std::size_t i = 0; i < current_.size(); ++i) {
        tile_place const place = place_of(task_.cache(), run::pages, first + i);
        auto const range = visible_in(task_.what.queries, chunk.queries[n].row, run::pages, place);
        seen |= mask(scratch_.scores[n] + i * page_tokens, page_tokens, range);
      }
      float const keep =
          softmax_step(chunk, n, scratch_.scores[n], current_.size() * page_tokens, task_.head_dim(), seen);
      if (keep != 1) {
        scale_in_place(chunk.queries[n].dense, dense_sums(), keep);
        chunk.queries[n].offset *= keep;
      }
      any |= seen;
    }
    return any;
  }

  /// Each page's codes are consumed as they are unpacked.
  template <std::size_t Queries>
  void attend_group(std::size_t first, query_chunk& chunk) {
    for (std::size_t i = 0; i < current_.size(); ++i) {
      if (i > 0) step({&chunk, 1});
      set_entries<Queries>(chunk);
      auto const* const codes = page_bytes_at(current_[i], 0);
      if (turns_ != nullptr)
        score_turned_keys<Queries>(task_, codes, key_codes_, *turns_, chunk, scratch_, i * page_tokens, ahead_[i]);
      else
        score_by_turned_query<Queries>(task_, codes, key_codes_, angles(), chunk, scratch_, i * page_tokens, ahead_[i]);
      add_key_slots<Queries>(task_, current_[i], chunk, scratch_, i * page_tokens, ahead_[i]);
    }
    if (!softmax<Queries>(first, chunk)) return;
    add_packed_values<Queries>(task_, current_, value_codes_, chunk, scratch_, ahead_);
    add_value_slots<Queries>(task_, current_, chunk, scratch_, ahead_);
  }

  /// The page is unpacked once for all chunks.
  void attend_page(std::size_t page, std::span<query_chunk> chunks) {
    tile_place const place = place_of(task_.cache(), run::pages, page);
    if (!any_visible(task_.what.queries, run::pages, place)) return;
    turn_page(task_, page_bytes_at(current_[0], 0), key_codes_, *turns_, scratch_, ahead_[0]);
    unpack_values(task_, current_[0], value_codes_, scratch_, ahead_[0]);
    for (query_chunk& chunk : chunks) {
      with_count(chunk.count, [&](auto count) {
        set_entries<count()>(chunk);
        score_stored_keys<count()>(task_, chunk, scratch_);
        add_key_slots<count()>(task_, current_[0], chunk, scratch_, 0, ahead_[0]);
        if (!softmax<count()>(page, chunk)) return;
        add_stored_values<count(), side_codes<VBits>>(task_, current_, chunk, scratch_);
        add_value_slots<count()>(task_, current_, chunk, scratch_, ahead_);
      });
      ahead_[0] = read_ahead();  // touched for all chunks
    }
  }

  split_task const& task_;
  kernel_scratch& scratch_;
  key_head const& keys_;
  value_head const& values_;
  key_turns const* turns_ = nullptr;
  side_codes<KBits> key_codes_;
  side_codes<VBits> value_codes_;
  std::array<std::byte const*, largest_group> pages_{};
  std::span<std::byte const* const> current_;
  std::array<read_ahead, largest_group> ahead_{};  ///< beside each page, one of the next group
};

/// Pages that become rows of floats or binary16: `rows(page)` gives keys and values.
template <class Rows>
void attend_rows_of_pages(split_task const& task, std::size_t first, std::size_t last, std::span<query_chunk> chunks,
                          kernel_scratch& scratch, Rows&& rows) {
  for (std::size_t page = first; page < last; ++page) {
    if (page > first) step_queries(task, chunks);
    tile_place const place = place_of(task.cache(), run::pages, page);
    if (!any_visible(task.what.queries, run::pages, place)) continue;
    read_ahead ahead = page + 1 < tiles_in(task.cache(), run::pages)
                           ? read_ahead(task.page(page + 1), task.cache().page_bytes, 2 * page_tokens)
                           : read_ahead();
    auto const [k, v] = rows(task.page(page));
    for (query_chunk& chunk : chunks) {
      with_count(chunk.count, [&, &keys = k, &values = v](auto count) {
        attend_exact_tile<count()>(task, keys.middle_rows(0, place.tokens), values.middle_rows(0, place.tokens),
                                   run::pages, place, chunk, scratch, ahead);
      });
      ahead = read_ahead();  // touched for all chunks
    }
  }
}

inline float sparse_sum(query_chunk const& chunk, std::size_t query, std::size_t channel) {
  float sum = 0;
  for (std::size_t part = 0; part < slot_parts(chunk.count); ++part)
    sum += chunk.sparse_out[(part * largest_head_dim + channel) * slot_lanes(chunk.count) + query];
  return sum;
}

inline void store_partials(split_task const& task, std::span<query_chunk const> chunks) {
  std::size_t const d = task.head_dim();
  float* to = task.partials;
  for (query_chunk const& chunk : chunks)
    for (std::size_t n = 0; n < chunk.count; ++n, to += d + 2) {
      query_state const& q = chunk.queries[n];
      to[0] = q.m;
      to[1] = q.l;
      for (std::size_t c = 0; c < d; ++c) to[2 + c] = q.out[c] + sparse_sum(chunk, n, c);
    }
}

/// The first pages are on their way while queries are placed and sinks are read.
inline void touch_first_pages(split_task const& task) {
  task.what.for_each_run([&](run where, std::size_t first, std::size_t last) {
    if (where != run::pages) return;
    for (std::size_t page = first; page < std::min(last, first + task.policy().pages_per_group); ++page)
      read_ahead(task.page(page), task.cache().page_bytes, 1).step(0);
  });
}

/// `attend_pages(first, last, chunks)` serves the pages of the task.
template <class AttendPages>
inline void attend_split(split_task const& task, kernel_scratch& scratch, AttendPages&& attend_pages) {
  touch_first_pages(task);
  auto const chunks = start_chunks(task, scratch);
  task.what.for_each_run([&](run where, std::size_t first, std::size_t last) {
    for_each_query(chunks, [&](query_state& q) { place_query(task, q, task.angles[static_cast<int>(where)]); });
    layer_view const& cache = task.cache();
    if (where == run::pages)
      attend_pages(first, last, chunks);
    else if (where == run::sinks)
      attend_exact_run(task, where, first, last, cache.sink_k, cache.sink_v, chunks, scratch);
    else
      attend_exact_run(task, where, first, last, cache.tail_k, cache.tail_v, chunks, scratch);
  });
  store_partials(task, chunks);
}

template <int KBits, int VBits>
void attend_integer_pages(split_task const& task, kernel_scratch& scratch) {
  integer_pages<KBits, VBits> pages(task, scratch);
  attend_split(task, scratch, pages);
}

/// Pages of binary16: keys, then values, [page_tokens, head_dim] each.
inline void attend_half_pages(split_task const& task, kernel_scratch& scratch) {
  attend_split(task, scratch, [&](std::size_t first, std::size_t last, std::span<query_chunk> chunks) {
    attend_rows_of_pages(task, first, last, chunks, scratch, [&](std::byte const* page) {
      std::size_t const d = task.head_dim();
      auto const* const k = reinterpret_cast<half const*>(page);
      return std::pair(view2d<half const>(k, page_tokens, d), view2d<half const>(k + page_tokens * d, page_tokens, d));
    });
  });
}

/// Pages that the task's reader turns into floats.
inline void attend_float_pages(split_task const& task, kernel_scratch& scratch) {
  std::size_t const d = task.head_dim();
  scratch.tile_k.resize(page_tokens * d);
  scratch.tile_v.resize(page_tokens * d);
  attend_split(task, scratch, [&](std::size_t first, std::size_t last, std::span<query_chunk> chunks) {
    attend_rows_of_pages(task, first, last, chunks, scratch, [&](std::byte const* page) {
      task.layer.reader->read({page, task.cache().page_bytes}, task.what.kv_head, scratch.tile_k.data(),
                              scratch.tile_v.data());
      return std::pair(view2d<float const>(scratch.tile_k.data(), page_tokens, d),
                       view2d<float const>(scratch.tile_v.data(), page_tokens, d));
    });
  });
}

inline void build_layer_turns(layer_tables& layer, rotation_tables const& rotation) {
  layer.turns.resize(layer.key_heads.size());
  for (std::size_t head = 0; head < layer.key_heads.size(); ++head)
    build_turns(layer.key_heads[head], rotation, layer.turns[head]);
}

/// What these instructions offer.
struct kernels {
  template <int KBits, int VBits>
  static constexpr kernel_set integer() {
    return {attend_integer_pages<KBits, VBits>, build_layer_turns};
  }
  static constexpr kernel_set exact() { return {attend_half_pages, build_layer_turns}; }
  static constexpr kernel_set floating() { return {attend_float_pages, build_layer_turns}; }
  template <int KBits, int VBits>
  static constexpr sealing_kernels sealing() {
    constexpr map_of of_values = VBits == bits_by_chunk ? map_of::channel : map_of::token;
    return {seal_side<KBits, map_of::channel>, seal_side<VBits, of_values>, count_clamped, range_of};
  }
};
