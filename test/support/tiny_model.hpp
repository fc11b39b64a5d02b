#pragma once
/// \file
/// Llama-family models of a few thousand random weights, as GGUF files with a working tokenizer.

#include <cmath>
#include <cstddef>
#include <cstdint>
#include <random>
#include <string>
#include <vector>

#include "runtime/gguf.hpp"
#include "runtime/tensor_type.hpp"
#include "test/support/gguf_writer.hpp"
#include "test/support/vocabularies.hpp"

namespace kvquant::test {

/// The defaults: grouped queries (three a KV head) and heads that are not hidden / q_heads wide. Every number of
/// columns is a multiple of 32, so that all types with such blocks fit.
struct tiny_model {
  /// Or "qwen2", which has biases on Q, K and V; or "gemma3", which has more norms, GELU, embeddings that are scaled,
  /// and a window and another RoPE in every layer but each second.
  std::string architecture = "llama";
  int layers = 2, hidden = 64, q_heads = 6, kv_heads = 2, head_dim = 16, feed_forward = 96;
  int rotary_dim = 16;
  double rope_theta = 1000, rope_linear_factor = 1;
  bool rope_factors = false;  ///< a rope_freqs.weight tensor
  bool tied_embeddings = false;
  bool add_bos = false;
  int window = 40;                                        ///< of gemma3
  runtime::tensor_type type = runtime::tensor_type::f32;  ///< of the matrices; norms and biases are F32
  unsigned seed = 1;

  /// Byte-level BPE without merges: token b is byte b.
  static constexpr int vocabulary = 256;

  static constexpr double local_theta = 50;

  bool has_biases() const { return architecture == "qwen2"; }
  bool is_gemma() const { return architecture == "gemma3"; }
  bool is_local(int layer) const { return is_gemma() && layer % 2 == 0; }

  /// What a test may still change before it takes the bytes.
  gguf_writer writer() const {
    gguf_writer out = byte_level("smollm").file();
    put_metadata(out);
    std::mt19937 random(seed);
    add_matrix(out, "token_embd.weight", hidden, vocabulary, random, 1);
    if (!tied_embeddings) add_matrix(out, "output.weight", hidden, vocabulary, random, 2);
    add_vector(out, "output_norm.weight", hidden, random, 1);
    if (rope_factors) add_vector(out, "rope_freqs.weight", rotary_dim / 2, random, 2);
    for (int layer = 0; layer < layers; ++layer) add_layer(out, "blk." + std::to_string(layer) + ".", random);
    return out;
  }

 private:
  void put_metadata(gguf_writer& out) const {
    std::string const prefix = architecture + ".";
    auto const set_count = [&](std::string const& key, int value) {
      out.set(prefix + key, static_cast<std::uint32_t>(value));
    };
    out.set("general.architecture", architecture).set("general.name", "tiny " + architecture);
    set_count("block_count", layers);
    set_count("context_length", 512);
    set_count("embedding_length", hidden);
    set_count("feed_forward_length", feed_forward);
    set_count("attention.head_count", q_heads);
    set_count("attention.head_count_kv", kv_heads);
    set_count("attention.key_length", head_dim);
    set_count("attention.value_length", head_dim);
    set_count("rope.dimension_count", rotary_dim);
    out.set(prefix + "attention.layer_norm_rms_epsilon", 1e-5f);
    out.set(prefix + "rope.freq_base", static_cast<float>(rope_theta));
    if (rope_linear_factor != 1) {
      out.set(prefix + "rope.scaling.type", "linear");
      out.set(prefix + "rope.scaling.factor", static_cast<float>(rope_linear_factor));
    }
    if (is_gemma()) {
      set_count("attention.sliding_window", window);
      set_count("attention.sliding_window_pattern", 2);
      out.set(prefix + "rope.freq_base_swa", static_cast<float>(local_theta));
    }
    out.set("tokenizer.ggml.add_bos_token", add_bos);
  }

  void add_layer(gguf_writer& out, std::string const& prefix, std::mt19937& random) const {
    int const q_channels = q_heads * head_dim, kv_channels = kv_heads * head_dim;
    add_vector(out, prefix + "attn_norm.weight", hidden, random, 1);
    // Queries and keys are large, so that attention is far from uniform.
    add_matrix(out, prefix + "attn_q.weight", hidden, q_channels, random, 2);
    add_matrix(out, prefix + "attn_k.weight", hidden, kv_channels, random, 2);
    add_matrix(out, prefix + "attn_v.weight", hidden, kv_channels, random, 1);
    add_matrix(out, prefix + "attn_output.weight", q_channels, hidden, random, 1);
    if (has_biases()) {
      add_vector(out, prefix + "attn_q.bias", q_channels, random, 0);
      add_vector(out, prefix + "attn_k.bias", kv_channels, random, 0);
      add_vector(out, prefix + "attn_v.bias", kv_channels, random, 0);
    }
    if (is_gemma()) {
      add_vector(out, prefix + "attn_q_norm.weight", head_dim, random, 2);
      add_vector(out, prefix + "attn_k_norm.weight", head_dim, random, 2);
      add_vector(out, prefix + "post_attention_norm.weight", hidden, random, 1);
      add_vector(out, prefix + "post_ffw_norm.weight", hidden, random, 1);
    }
    add_vector(out, prefix + "ffn_norm.weight", hidden, random, 1);
    add_matrix(out, prefix + "ffn_gate.weight", hidden, feed_forward, random, 2);
    add_matrix(out, prefix + "ffn_up.weight", hidden, feed_forward, random, 1);
    add_matrix(out, prefix + "ffn_down.weight", feed_forward, hidden, random, 1);
  }

  /// `gain` is about the factor by which it lengthens a random vector.
  void add_matrix(gguf_writer& out, std::string name, int inputs, int outputs, std::mt19937& random, float gain) const {
    out.add_random(std::move(name), type, {static_cast<std::uint64_t>(inputs), static_cast<std::uint64_t>(outputs)},
                   random, gain / std::sqrt(static_cast<float>(inputs)));
  }

  static void add_vector(gguf_writer& out, std::string name, int size, std::mt19937& random, float centre) {
    std::normal_distribution<float> normal(centre, 0.3f);
    std::vector<float> values(static_cast<std::size_t>(size));
    for (float& value : values) value = centre == 0 ? normal(random) : std::abs(normal(random)) + 0.1f;
    out.add(std::move(name), runtime::tensor_type::f32, {static_cast<std::uint64_t>(size)}, values);
  }
};

/// A GGUF file in memory.
class memory_gguf {
 public:
  explicit memory_gguf(gguf_writer const& writer)
      : bytes_(writer.bytes()), file_(runtime::gguf_file::parse(bytes_, "tiny.gguf")) {}

  runtime::gguf_file const& file() const { return file_; }

 private:
  std::vector<std::byte> bytes_;
  runtime::gguf_file file_;
};

inline std::vector<runtime::token_id> random_ids(std::size_t count, int vocabulary, unsigned seed) {
  std::mt19937 random(seed);
  std::uniform_int_distribution<runtime::token_id> any(0, vocabulary - 1);
  std::vector<runtime::token_id> ids(count);
  for (auto& id : ids) id = any(random);
  return ids;
}

}  // namespace kvquant::test
