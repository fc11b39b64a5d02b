// Loops whose index is a constant in each turn.

/// `f(std::integral_constant<std::size_t, i>)` for i below `Count`.
template <std::size_t Count, class F>
[[gnu::always_inline]] inline void unrolled(F&& f) {
  [&]<std::size_t... I>(std::index_sequence<I...>) __attribute__((always_inline)) {
    (f(std::integral_constant<std::size_t, I>{}), ...);
  }
  (std::make_index_sequence<Count>{});
}
