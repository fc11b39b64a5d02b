/* Threads of the library's and of the caller's, and executors that do not keep their word. */
#include <pthread.h>
#include <string.h>

#include "test/adapters/c/fixture.h"
#include "test/adapters/c/suites.h"

/* An executor of two threads, made for each call. */
struct half_of_the_tasks {
  size_t first, tasks;
  kvquant_task task;
  void* context;
};
static void* run_half(void* argument) {
  struct half_of_the_tasks const* half = argument;
  for (size_t i = half->first; i < half->tasks; i += 2) half->task(half->context, i, (int32_t)half->first);
  return NULL;
}
static void run_on_two_threads(void* context, size_t tasks, kvquant_task task, void* task_context) {
  ++*(int*)context;
  struct half_of_the_tasks halves[2] = {{0, tasks, task, task_context}, {1, tasks, task, task_context}};
  pthread_t other;
  if (pthread_create(&other, NULL, run_half, &halves[1]) != 0) return;
  run_half(&halves[0]);
  pthread_join(other, NULL);
}

static void answers_are_the_same_whoever_runs_the_tasks(void) {
  int calls = 0;
  kvquant_executor const executor = {
      .size = sizeof executor, .workers = 2, .context = &calls, .run = run_on_two_threads};
  kvquant_cache_options options = small_options();
  options.executor = &executor;
  kvquant_cache* cache = make_cache_with("model.kvq", &options);
  kvquant_sequence* sequence = filled_sequence(cache, PREFIX);
  check_answers(cache, sequence);
  CHECK(calls > 0);
  kvquant_cache_info info = {.size = sizeof info};
  CHECK_OK(kvquant_cache_get_info(cache, &info));
  CHECK(info.workers == 2);
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(cache));
  options.executor = NULL;
  options.threads = 3;
  cache = make_cache_with("model.kvq", &options);
  sequence = filled_sequence(cache, PREFIX);
  check_answers(cache, sequence);
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(cache));
}

/* Several threads, each with a sequence of one cache, which has one pool. */
static void* fill_and_ask(void* argument) {
  kvquant_cache* cache = argument;
  kvquant_sequence* sequence = NULL;
  struct answer found = {0};
  if (kvquant_sequence_open(cache, PREFIX, &sequence) != KVQUANT_OK) return "open";
  if (append_tokens(sequence, 0, PREFIX) != KVQUANT_OK) return "append";
  kvquant_query const query = question(sequence, 0, &found);
  if (kvquant_attend(cache, 0, &query, 1) != KVQUANT_OK) return "attend";
  if (memcmp(found.out, fixture.answers[0].out, sizeof found.out) != 0) return "answer";
  return kvquant_sequence_close(sequence) == KVQUANT_OK ? NULL : "close";
}
static void sequences_of_one_cache_are_used_from_several_threads(void) {
  kvquant_cache_options options = small_options();
  options.threads = 2;
  kvquant_cache* cache = make_cache_with("model.kvq", &options);
  pthread_t threads[4];
  for (size_t i = 0; i < 4; ++i) CHECK(pthread_create(&threads[i], NULL, fill_and_ask, cache) == 0);
  for (size_t i = 0; i < 4; ++i) {
    void* failed = NULL;
    CHECK(pthread_join(threads[i], &failed) == 0);
    CHECK(failed == NULL);
  }
  CHECK_OK(kvquant_cache_close(cache));
}

static void* fail_here(void* argument) {
  bool const none_before = strcmp(kvquant_last_error(), "") == 0;
  kvquant_sequence_close(argument);
  return none_before && strstr(kvquant_last_error(), "none of this library") != NULL ? argument : NULL;
}
static void every_thread_has_its_own_last_error(void) {
  CHECK_FAILS(kvquant_artifact_close((kvquant_artifact*)&fixture), KVQUANT_ERROR_BAD_HANDLE, "expected an artifact");
  pthread_t other;
  void* as_expected = NULL;
  CHECK(pthread_create(&other, NULL, fail_here, &fixture) == 0);
  CHECK(pthread_join(other, &as_expected) == 0 && as_expected != NULL);
  CHECK(strstr(kvquant_last_error(), "expected an artifact") != NULL);
}

/* What an executor does wrong. */
enum fault { NONE, LEAVES_ONE_OUT, RUNS_NOTHING, INVENTS_A_TASK, INVENTS_A_WORKER };
static void run_wrongly(void* context, size_t tasks, kvquant_task task, void* task_context) {
  enum fault const fault = *(enum fault*)context;
  if (fault == RUNS_NOTHING) return;
  for (size_t i = fault == LEAVES_ONE_OUT ? 1 : 0; i < tasks; ++i)
    task(task_context, i, fault == INVENTS_A_WORKER && i == 0 ? 1 : 0);
  if (fault == INVENTS_A_TASK) task(task_context, tasks, 0);
}

static void executors_that_break_their_word_are_found(void) {
  enum fault fault = NONE;
  kvquant_executor const executor = {.size = sizeof executor, .workers = 1, .context = &fault, .run = run_wrongly};
  kvquant_cache_options options = small_options();
  options.executor = &executor;
  kvquant_cache* cache = make_cache_with("model.kvq", &options);
  kvquant_sequence* sequence = filled_sequence(cache, PREFIX);
  for (fault = LEAVES_ONE_OUT; fault <= INVENTS_A_WORKER; ++fault) {
    struct answer found = {0};
    kvquant_query const query = question(sequence, 0, &found);
    CHECK_FAILS(kvquant_attend(cache, 0, &query, 1), KVQUANT_ERROR_EXECUTOR, "the executor ran ");
    kvquant_sequence *fork = NULL, *refused = NULL; /* what seals a page is half done */
    CHECK_OK(kvquant_sequence_fork(sequence, &fork));
    CHECK_FAILS(append_tokens(fork, PREFIX, 90), KVQUANT_ERROR_EXECUTOR, "the executor ran ");
    CHECK_FAILS(append_tokens(fork, PREFIX, 1), KVQUANT_ERROR_BROKEN, "can only be closed");
    CHECK_FAILS(kvquant_sequence_fork(fork, &refused), KVQUANT_ERROR_BROKEN, "can only be closed");
    CHECK_OK(kvquant_sequence_close(fork));
  }
  fault = NONE;
  check_answers(cache, sequence);
  CHECK_OK(kvquant_sequence_close(sequence));
  CHECK_OK(kvquant_cache_close(cache));
}

/* An executor during whose work somebody else asks for the sequence, or closes it. */
struct meanwhile {
  kvquant_sequence* sequence;
  kvquant_status appended, asked, read;
  bool closes;
};
static void run_meanwhile(void* context, size_t tasks, kvquant_task task, void* task_context) {
  struct meanwhile* it = context;
  if (it->sequence != NULL) {
    kvquant_sequence* sequence = it->sequence;
    size_t tokens = 0;
    it->sequence = NULL;
    it->appended = append_tokens(sequence, PREFIX, 1);
    it->asked = kvquant_sequence_truncate(sequence, 1);
    it->read = kvquant_sequence_get_tokens(sequence, &tokens);
    if (it->closes) CHECK_OK(kvquant_sequence_close(sequence));
  }
  for (size_t i = 0; i < tasks; ++i) task(task_context, i, 0);
}

static void a_sequence_that_is_in_use_is_busy(void) {
  struct meanwhile it = {0};
  kvquant_executor const executor = {.size = sizeof executor, .workers = 1, .context = &it, .run = run_meanwhile};
  kvquant_cache_options options = small_options();
  options.executor = &executor;
  kvquant_cache* cache = make_cache_with("model.kvq", &options);
  kvquant_sequence *sequence = filled_sequence(cache, PREFIX), *fork = NULL;
  CHECK_OK(kvquant_sequence_fork(sequence, &fork));
  it.sequence = fork;
  CHECK_OK(append_tokens(fork, PREFIX, 90)); /* which changes it */
  CHECK(it.appended == KVQUANT_ERROR_BUSY && it.asked == KVQUANT_ERROR_BUSY && it.read == KVQUANT_ERROR_BUSY);
  CHECK(tokens_of(fork) == PREFIX + 90);
  it.sequence = sequence; /* which is read */
  check_answers(cache, sequence);
  CHECK(it.appended == KVQUANT_ERROR_BUSY && it.asked == KVQUANT_ERROR_BUSY && it.read == KVQUANT_OK);

  it.closes = true; /* while it is read: the answers come, then it is gone */
  it.sequence = sequence;
  struct answer found = {0};
  kvquant_query const query = question(sequence, 0, &found);
  CHECK_OK(kvquant_attend(cache, 0, &query, 1));
  CHECK_SAME(found.out, fixture.answers[0].out, ROWS * Q_CHANNELS);
  CHECK_FAILS(kvquant_attend(cache, 0, &query, 1), KVQUANT_ERROR_BAD_HANDLE, "was closed");
  CHECK_OK(kvquant_sequence_close(fork));
  kvquant_cache_info info = {.size = sizeof info};
  CHECK_OK(kvquant_cache_get_info(cache, &info));
  CHECK(info.free_pages == LAYERS * 1024 / KVQUANT_PAGE_TOKENS);
  CHECK_OK(kvquant_cache_close(cache));
}

struct test_case const executor_cases[] = {
    {"answers are the same whoever runs the tasks", answers_are_the_same_whoever_runs_the_tasks},
    {"sequences of one cache are used from several threads", sequences_of_one_cache_are_used_from_several_threads},
    {"every thread has its own last error", every_thread_has_its_own_last_error},
    {"executors that break their word are found", executors_that_break_their_word_are_found},
    {"a sequence that is in use is busy", a_sequence_that_is_in_use_is_busy},
    {NULL, NULL}};
