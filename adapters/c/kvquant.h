/*
 * kvquant: the KV cache of a language model in 4, 3 or 2 bits. C11 and C++; docs/c.md explains it in one page.
 *
 * Status. Functions that can fail return a kvquant_status: KVQUANT_OK, which is 0, or what went wrong;
 * kvquant_last_error() says more. What a function was to write through `out` is NULL then, and a sequence is as it was.
 *
 * Handles. A handle is a ticket, not an address. One that was closed, is NULL, or belongs to something else is refused
 * with KVQUANT_ERROR_BAD_HANDLE for as long as the process lives. Every handle is to be closed; closing NULL does
 * nothing.
 *
 * Structs. Those that may grow begin with `size`, which the caller sets to their sizeof, whichever way they are
 * passed. Members that a caller's version lacks have their default; members that are new to the library must be zero.
 *
 * Threads. Every function may be called from any thread. Calls on artifacts and caches may overlap. Calls that change a
 * sequence must not overlap with others on it, and say KVQUANT_ERROR_BUSY where they do, leaving it alone; those that
 * read may overlap with each other. A handle may be closed while calls use it: they end as if it had not been.
 *
 * Numbers. Keys, values and queries lie in host memory: row r begins `r * stride` elements behind the first; a stride
 * of 0 stands for rows without gaps. Each must be finite, at most 65504 in size, and aligned as its type asks.
 */
#ifndef KVQUANT_H
#define KVQUANT_H

#include <stddef.h>
#include <stdint.h>

#define KVQUANT_VERSION_MAJOR 0
#define KVQUANT_VERSION_MINOR 1
#define KVQUANT_VERSION_PATCH 0
#define KVQUANT_VERSION "0.1.0"
/* Rises with the version: 10203 is 1.2.3. */
#define KVQUANT_VERSION_NUMBER (KVQUANT_VERSION_MAJOR * 10000 + KVQUANT_VERSION_MINOR * 100 + KVQUANT_VERSION_PATCH)

/* Tokens of a page. */
#define KVQUANT_PAGE_TOKENS 64

#if defined(__GNUC__)
#define KVQUANT_API __attribute__((visibility("default")))
#else
#define KVQUANT_API
#endif

#ifdef __cplusplus
extern "C" {
#endif

typedef int32_t kvquant_status;
enum {
  KVQUANT_OK = 0,
  KVQUANT_ERROR_BAD_SHAPE = 1,    /* sizes that do not fit together */
  KVQUANT_ERROR_BAD_VALUE = 2,    /* NaN, infinity, NULL, or a number out of its range */
  KVQUANT_ERROR_BAD_FORMAT = 3,   /* an unknown datatype, or one that differs from what is expected; another model's */
  KVQUANT_ERROR_BAD_FILE = 4,     /* cannot be read or written, or its bytes are not what they should be */
  KVQUANT_ERROR_OUT_OF_PAGES = 5, /* the cache is full */
  KVQUANT_ERROR_UNSUPPORTED = 6,  /* the text names what is missing */
  KVQUANT_ERROR_DEVICE = 7,       /* an accelerator reported an error */
  KVQUANT_ERROR_BAD_HANDLE = 8,   /* NULL, closed, or of another kind */
  KVQUANT_ERROR_BUSY = 9,         /* another call is using the sequence */
  KVQUANT_ERROR_OUT_OF_MEMORY = 10,
  KVQUANT_ERROR_EXECUTOR = 11, /* the caller's executor did not run every task, or ran what is none */
  KVQUANT_ERROR_BROKEN = 12,   /* a call failed half-way (executor, memory): the sequence can only be closed */
  KVQUANT_ERROR_INTERNAL = 13  /* a fault of the library: please report its text */
};

/* Of the library that is loaded, which may be newer than this header. */
KVQUANT_API char const* kvquant_version(void);
KVQUANT_API int32_t kvquant_version_number(void);

/* "bad_shape", say; "unknown" for what is no status. */
KVQUANT_API char const* kvquant_status_name(kvquant_status status);
/* What was wrong in the last call of this thread that failed, where, and what was expected; "" if none did. Valid until
   the next one fails. */
KVQUANT_API char const* kvquant_last_error(void);

/* ---- artifacts: what a calibration found out about one model ---- */

typedef struct kvquant_artifact kvquant_artifact;

typedef int32_t kvquant_rope_pairing;
enum { KVQUANT_ROPE_HALF_SPLIT = 0, KVQUANT_ROPE_INTERLEAVED = 1 };

typedef int32_t kvquant_rope_scaling;
enum {
  KVQUANT_ROPE_NOT_SCALED = 0,
  KVQUANT_ROPE_LINEAR = 1,
  KVQUANT_ROPE_NTK = 2,
  KVQUANT_ROPE_LLAMA3 = 3,
  KVQUANT_ROPE_YARN = 4
};

/* The rotary positions of a model; kvquant_rope_default() has the usual ones. */
typedef struct kvquant_rope {
  size_t size;
  int32_t enabled; /* 0: keys are not rotated at all */
  kvquant_rope_pairing pairing;
  double theta;
  int32_t rotary_dim; /* channels of a head that are rotated; 0: all */
  kvquant_rope_scaling scaling;
  double factor;                  /* linear, NTK, llama3, YaRN */
  int32_t original_context;       /* llama3, YaRN */
  double low_frequency_factor;    /* llama3 */
  double high_frequency_factor;   /* llama3 */
  double beta_fast;               /* YaRN */
  double beta_slow;               /* YaRN */
  double attention_factor;        /* YaRN; 0: 0.1 ln(factor) + 1 */
  float const* frequency_factors; /* [rotary_dim / 2] divides each inverse frequency; NULL: none */
  size_t frequency_factor_count;
} kvquant_rope;

typedef struct kvquant_model_shape {
  size_t size;
  int32_t layers;
  int32_t q_heads;
  int32_t kv_heads;
  int32_t head_dim;
  kvquant_rope const* rope;    /* of layers that see all tokens */
  int32_t const* local_layers; /* layers that see the latest tokens alone, rising; NULL: none */
  size_t local_layer_count;
  int32_t local_window;           /* tokens that a query sees in them, its own included */
  kvquant_rope const* local_rope; /* theirs */
} kvquant_model_shape;

typedef struct kvquant_artifact_info {
  size_t size;
  char const* format; /* "nuq3", "adaptive", "f16" */
  char const* model_name;
  char const* model_hash; /* what the calibration was told; "" for an unknown model */
  char const* tokenizer_hash;
  char const* text_hash;
  char const* library_version;
  char const* hash; /* of the file's content; "" for an artifact that was not read */
  double key_bits;  /* of an element's code, without outliers */
  double value_bits;
  double key_outlier_fraction;
  double value_outlier_fraction;
  uint64_t seed;
  int32_t sinks; /* first tokens that calibration left out, and caches keep exact */
  int32_t samples;
  int32_t context;
  int32_t q_norm; /* 1: codes read as other levels than they are chosen by */
} kvquant_artifact_info;

/* What `kvquant calibrate` wrote. */
KVQUANT_API kvquant_status kvquant_artifact_open(char const* path, kvquant_artifact** out);
/* One that quantizes nothing, in need of no calibration: caches of binary16, which others are compared with. `shape`
   must name its rope. Files of sequences belong to the model of that hash; NULL or "": to any of that shape. */
KVQUANT_API kvquant_status kvquant_artifact_make_f16(kvquant_model_shape const* shape, char const* model_name,
                                                     char const* model_hash, kvquant_artifact** out);
/* What `out` points to lives until the artifact is closed. */
KVQUANT_API kvquant_status kvquant_artifact_get_info(kvquant_artifact* artifact, kvquant_artifact_info* out);
KVQUANT_API kvquant_status kvquant_artifact_get_shape(kvquant_artifact* artifact, kvquant_model_shape* out);
/* KVQUANT_ERROR_BAD_FORMAT naming both models unless the artifact was made for the model of that hash and shape; its
   ropes are not compared, and may be NULL. */
KVQUANT_API kvquant_status kvquant_artifact_require_model(kvquant_artifact* artifact, char const* model_name,
                                                          char const* model_hash, kvquant_model_shape const* shape);
/* Caches that were made with it need it no longer. */
KVQUANT_API kvquant_status kvquant_artifact_close(kvquant_artifact* artifact);

/* ---- backends ---- */

KVQUANT_API size_t kvquant_backend_count(void);
/* NULL from kvquant_backend_count() on. */
KVQUANT_API char const* kvquant_backend_name(size_t index);
/* The fastest that this machine can run. */
KVQUANT_API char const* kvquant_default_backend(void);
/* KVQUANT_ERROR_UNSUPPORTED where the backend cannot serve caches of the artifact: the text names what is missing. */
KVQUANT_API kvquant_status kvquant_supports(char const* backend, kvquant_artifact* artifact);

/* ---- caches ---- */

typedef struct kvquant_cache kvquant_cache;

/* One of the `tasks` that an executor was asked for. */
typedef void (*kvquant_task)(void* task_context, size_t index, int32_t worker);

/* Threads of the caller's. `run` calls `task(task_context, index, worker)` once for each index below `tasks`, from any
   threads, and returns when all are done. Calls with the same worker, 0 to workers - 1, must not overlap. Where the
   cache is used by several threads, `run` is called from each. It must not throw. */
typedef struct kvquant_executor {
  size_t size;
  int32_t workers;
  void* context;
  void (*run)(void* context, size_t tasks, kvquant_task task, void* task_context);
} kvquant_executor;

enum { KVQUANT_SINKS_OF_ARTIFACT = -1 };

/* To be had from kvquant_cache_options_default(). */
typedef struct kvquant_cache_options {
  size_t size;
  char const* backend;   /* NULL: kvquant_default_backend() */
  size_t max_tokens;     /* that pages have room for, all sequences together; allocated at once */
  size_t max_sequences;  /* at a time; 0: unknown. Saves memory in layers that see a window */
  int32_t sinks;         /* first tokens that stay exact */
  int32_t recent_pages;  /* whole pages of the latest tokens that stay exact; 0 */
  int32_t rewind_tokens; /* by which a cut can always go back in layers that see a window; 64 */
  int32_t threads;       /* 1: the calling thread; more: a pool of the cache's own; 0: as many as the machine has */
  kvquant_executor const* executor; /* instead of `threads`; copied */
} kvquant_cache_options;

typedef struct kvquant_cache_info {
  size_t size;
  char const* backend;
  size_t free_pages; /* that no sequence has, each of all KV heads of a layer */
  int32_t sinks;
  int32_t recent_pages;
  int32_t layers;
  int32_t kv_channels; /* elements of a row of keys or values */
  int32_t q_channels;  /* elements of a row of queries or of attention's output */
  int32_t workers;
} kvquant_cache_info;

/* Every byte that is allocated, counted once. */
typedef struct kvquant_bytes {
  size_t size;
  size_t codes;
  size_t value_ranges;
  size_t slots;      /* sparse elements */
  size_t padding;    /* of pages to whole lines */
  size_t sinks;      /* the first tokens, exact */
  size_t tail;       /* the latest tokens, exact */
  size_t tables;     /* codebooks and key channels */
  size_t page_table; /* ids of pages, counts of owners */
  size_t slack;      /* allocated and not in use */
  size_t total;
  size_t elements; /* keys and values of a sequence's tokens; 0 for a cache */
} kvquant_bytes;

/* Of formats with channels of several widths: what was sealed, and what of it calibration had not seen. */
typedef struct kvquant_clamps {
  size_t size;
  uint64_t keys;
  uint64_t values;
  uint64_t clamped_keys;
  uint64_t clamped_values;
} kvquant_clamps;

KVQUANT_API kvquant_status kvquant_cache_create(kvquant_artifact* artifact, kvquant_cache_options const* options,
                                                kvquant_cache** out);
/* What `out` points to lives as long as the process. */
KVQUANT_API kvquant_status kvquant_cache_get_info(kvquant_cache* cache, kvquant_cache_info* out);
/* Of the pages, all sequences together, and the tables. */
KVQUANT_API kvquant_status kvquant_cache_get_bytes(kvquant_cache* cache, kvquant_bytes* out);
KVQUANT_API kvquant_status kvquant_cache_get_clamps(kvquant_cache* cache, kvquant_clamps* out);
/* Its sequences live on, and may be appended to and cut; the memory goes with the last of them. */
KVQUANT_API kvquant_status kvquant_cache_close(kvquant_cache* cache);

/* ---- sequences ---- */

typedef struct kvquant_sequence kvquant_sequence;

/* An empty one. Up to `expected_tokens` its page tables need not grow; 0: unknown. */
KVQUANT_API kvquant_status kvquant_sequence_open(kvquant_cache* cache, size_t expected_tokens, kvquant_sequence** out);
/* Another with the same tokens: shares pages, copies what is exact. Reads `sequence`. */
KVQUANT_API kvquant_status kvquant_sequence_fork(kvquant_sequence* sequence, kvquant_sequence** out);
/* Into a cache of the same model, artifact, sinks and recent pages, whatever its backend. */
KVQUANT_API kvquant_status kvquant_sequence_load(kvquant_cache* cache, char const* path, kvquant_sequence** out);
/* The file appears whole or not at all. Reads `sequence`. */
KVQUANT_API kvquant_status kvquant_sequence_save(kvquant_sequence* sequence, char const* path);
/* Reads `sequence`; of the layer that has most. */
KVQUANT_API kvquant_status kvquant_sequence_get_tokens(kvquant_sequence* sequence, size_t* out);
/* As if no other sequence shared its pages. Reads `sequence`. */
KVQUANT_API kvquant_status kvquant_sequence_get_bytes(kvquant_sequence* sequence, kvquant_bytes* out);
/* Takes the pages that the next `tokens` of every layer need, so that appending them cannot run out. */
KVQUANT_API kvquant_status kvquant_sequence_reserve(kvquant_sequence* sequence, size_t tokens);
/* Cuts every layer to its first `tokens`. */
KVQUANT_API kvquant_status kvquant_sequence_truncate(kvquant_sequence* sequence, size_t tokens);
/* Forgets `count` tokens from `first` on, whole pages behind the sinks; later ones move to the front. */
KVQUANT_API kvquant_status kvquant_sequence_drop(kvquant_sequence* sequence, size_t first, size_t count);
KVQUANT_API kvquant_status kvquant_sequence_close(kvquant_sequence* sequence);

/* ---- tokens in, attention out ---- */

typedef int32_t kvquant_dtype;
enum { KVQUANT_F32 = 0, KVQUANT_F16 = 1, KVQUANT_BF16 = 2 };

/* Queries of a sequence's last `rows` tokens, each of which sees the tokens up to its own. The outputs must not overlap
   with anything that is read. */
typedef struct kvquant_query {
  size_t size;
  kvquant_sequence* sequence;
  size_t rows;
  void const* q; /* [rows, q_channels], before RoPE */
  size_t q_stride;
  kvquant_dtype q_dtype;
  int32_t q_rotated; /* 1: after RoPE */
  float* out;        /* [rows, q_channels] */
  size_t out_stride;
  float* score_max;    /* [rows, q_heads] without gaps: m, the largest score; NULL: not wanted */
  float* score_sum;    /* [rows, q_heads] without gaps: the sum of exp(score - m); NULL: not wanted */
  size_t window;       /* latest tokens that a query sees, its own included, beside the sinks; 0: all */
  float softmax_scale; /* of q . k; 0: 1 / sqrt(head_dim) */
  uint32_t reserved;   /* 0 */
} kvquant_query;

/* Appends to one layer. `k` (before RoPE) and `v` are [tokens, kv_channels]; what is not KVQUANT_F32 is converted to
   it, exactly. Changes `sequence`. */
KVQUANT_API kvquant_status kvquant_append(kvquant_sequence* sequence, int32_t layer, size_t tokens, kvquant_dtype dtype,
                                          void const* k, size_t k_stride, void const* v, size_t v_stride);
/* Answers queries of any sequences of one cache, together; `queries` has `count` structs of equal size. All read the
   cache as it is. Reads the sequences. */
KVQUANT_API kvquant_status kvquant_attend(kvquant_cache* cache, int32_t layer, kvquant_query const* queries,
                                          size_t count);
/* Appends `query->rows` tokens to `query->sequence`, and attends from each. What a token sees is what it would have
   seen had they come one by one, whatever the cut of a text into calls; a backend's sums may round otherwise. Sums of
   scores are not to be had here. Changes the sequence. */
KVQUANT_API kvquant_status kvquant_append_and_attend(int32_t layer, kvquant_dtype dtype, void const* k, size_t k_stride,
                                                     void const* v, size_t v_stride, kvquant_query const* query);

/* ---- defaults of structs, as far as `size` goes ---- */

KVQUANT_API kvquant_status kvquant_cache_options_init(kvquant_cache_options* options, size_t size);
KVQUANT_API kvquant_status kvquant_rope_init(kvquant_rope* rope, size_t size);

static inline kvquant_cache_options kvquant_cache_options_default(void) {
  kvquant_cache_options it;
  (void)kvquant_cache_options_init(&it, sizeof it);
  return it;
}
static inline kvquant_rope kvquant_rope_default(void) {
  kvquant_rope it;
  (void)kvquant_rope_init(&it, sizeof it);
  return it;
}

#ifdef __cplusplus
}
#endif

#endif /* KVQUANT_H */
