#include "streams.hpp"

#include <algorithm>
#include <chrono>
#include <memory>
#include <mutex>
#include <set>
#include <thread>
#include <unordered_set>
#include <vector>

using namespace ptxrun;

namespace {

// Work in the order of submission: the host records and waits for events in an order that dependencies allow.
using Recorded = std::vector<Work>;

struct Capture {
  cudaStreamCaptureMode mode = cudaStreamCaptureModeGlobal;
  std::thread::id thread = std::this_thread::get_id();
  Recorded work;
  bool invalid = false, ended = false;
};

// `before`: which work of the capture comes before whatever the stream does next, or before the event.
struct Stream {
  unsigned flags = 0;
  int priority = 0;
  bool origin = false;
  std::shared_ptr<Capture> capture;
  std::set<size_t> before;
};

struct Event {
  bool timed = true, recorded = false;
  double ms = 0;
  std::shared_ptr<Capture> capture;
  std::set<size_t> before;
  bool captured() const { return capture && !capture->ended; }
};

struct Graph {
  std::shared_ptr<Recorded const> work;
};

struct Streams {
  std::mutex mutex;
  Stream standard;  // the default streams, which are never captured here
  std::unordered_set<Stream*> live;
  std::unordered_set<Event*> events;
};
Streams& streams() {
  static Streams* s = new Streams;  // used by destructors of static objects
  return *s;
}
thread_local cudaStreamCaptureMode thread_mode = cudaStreamCaptureModeGlobal;

// Without per-thread default streams, a null handle is the legacy stream.
bool is_legacy(cudaStream_t handle) { return handle == nullptr || handle == cudaStreamLegacy; }

Stream* find(cudaStream_t handle) {
  if (is_legacy(handle) || handle == cudaStreamPerThread) return &streams().standard;
  auto* s = reinterpret_cast<Stream*>(handle);
  return streams().live.count(s) ? s : nullptr;
}
Event* find(cudaEvent_t handle) {
  auto* e = reinterpret_cast<Event*>(handle);
  return streams().events.count(e) ? e : nullptr;
}
Graph* graph_of(cudaGraph_t g) { return reinterpret_cast<Graph*>(g); }
Graph* graph_of(cudaGraphExec_t g) { return reinterpret_cast<Graph*>(g); }

cudaError_t invalidate(Capture& c, cudaError_t e) {
  c.invalid = true;
  return done(e);
}

void end(Capture& c) {
  c.ended = true;
  for (Stream* s : streams().live)
    if (s->capture.get() == &c) {
      s->capture.reset();
      s->before.clear();
      s->origin = false;
    }
}

double now_ms() {
  return std::chrono::duration<double, std::milli>(std::chrono::steady_clock::now().time_since_epoch()).count();
}

// What is being captured cannot be waited for, whatever the mode.
cudaError_t check_waitable(cudaStream_t handle) {
  std::lock_guard lock(streams().mutex);
  Stream* s = find(handle);
  if (!s) return done(cudaErrorInvalidResourceHandle);
  return s->capture ? invalidate(*s->capture, cudaErrorStreamCaptureUnsupported) : cudaSuccess;
}
cudaError_t check_waitable(cudaEvent_t handle) {
  std::lock_guard lock(streams().mutex);
  Event* e = find(handle);
  if (!e) return done(cudaErrorInvalidResourceHandle);
  return e->captured() ? invalidate(*e->capture, cudaErrorCapturedEvent) : cudaSuccess;
}

// For cudaStreamSynchronize and the like.
template <class Handle>
cudaError_t wait_for(Handle handle) {
  if (cudaError_t e = check_waitable(handle); e != cudaSuccess) return e;
  if (cudaError_t e = forbidden_in_capture(); e != cudaSuccess) return e;
  return done(cudaSuccess);
}

}  // namespace

namespace ptxrun {

cudaError_t submit(cudaStream_t handle, Work const& work, std::function<Work()> const& to_keep) {
  {
    std::lock_guard lock(streams().mutex);
    Stream* s = find(handle);
    if (!s) return done(cudaErrorInvalidResourceHandle);
    if (s->capture) {
      if (s->capture->invalid) return done(cudaErrorStreamCaptureInvalidated);
      if (!to_keep) return invalidate(*s->capture, cudaErrorNotSupported);
      s->before.insert(s->capture->work.size());
      s->capture->work.push_back(to_keep());
      return done(cudaSuccess);
    }
    // The legacy stream waits for every stream that does not opt out.
    for (Stream* other : streams().live)
      if (is_legacy(handle) && other->capture && !(other->flags & cudaStreamNonBlocking))
        return invalidate(*other->capture, cudaErrorStreamCaptureImplicit);
  }
  return work();
}

cudaError_t forbidden_in_capture() {
  std::lock_guard lock(streams().mutex);
  for (Stream* s : streams().live) {
    if (!s->origin || thread_mode == cudaStreamCaptureModeRelaxed || s->capture->mode == cudaStreamCaptureModeRelaxed)
      continue;
    if (s->capture->thread == std::this_thread::get_id() ||
        (thread_mode == cudaStreamCaptureModeGlobal && s->capture->mode == cudaStreamCaptureModeGlobal))
      return invalidate(*s->capture, cudaErrorStreamCaptureUnsupported);
  }
  return cudaSuccess;
}

}  // namespace ptxrun

extern "C" {

// --- streams ------------------------------------------------------------------------------------

cudaError_t cudaStreamCreateWithPriority(cudaStream_t* s, unsigned flags, int priority) {
  auto* stream = new Stream;
  stream->flags = flags;
  stream->priority = priority;
  std::lock_guard lock(streams().mutex);
  streams().live.insert(stream);
  *s = reinterpret_cast<cudaStream_t>(stream);
  return done(cudaSuccess);
}
cudaError_t cudaStreamCreateWithFlags(cudaStream_t* s, unsigned flags) {
  return cudaStreamCreateWithPriority(s, flags, 0);
}
cudaError_t cudaStreamCreate(cudaStream_t* s) { return cudaStreamCreateWithPriority(s, cudaStreamDefault, 0); }
cudaError_t cudaStreamDestroy(cudaStream_t handle) {
  std::lock_guard lock(streams().mutex);
  auto* s = reinterpret_cast<Stream*>(handle);
  if (!streams().live.count(s)) return done(cudaErrorInvalidResourceHandle);
  if (s->capture) s->capture->invalid = true;
  if (s->origin) end(*s->capture);
  streams().live.erase(s);
  delete s;
  return done(cudaSuccess);
}
cudaError_t cudaStreamSynchronize(cudaStream_t s) { return wait_for(s); }
cudaError_t cudaStreamQuery(cudaStream_t s) { return wait_for(s); }
cudaError_t cudaStreamWaitEvent(cudaStream_t handle, cudaEvent_t event, unsigned) {
  std::lock_guard lock(streams().mutex);
  Stream* s = find(handle);
  Event* e = find(event);
  if (!s || !e) return done(cudaErrorInvalidResourceHandle);
  if (!e->captured()) {
    if (s->capture && e->recorded) return invalidate(*s->capture, cudaErrorStreamCaptureIsolation);
    return done(cudaSuccess);
  }
  if (s == &streams().standard) return invalidate(*e->capture, cudaErrorStreamCaptureImplicit);
  if (s->capture && s->capture != e->capture) {
    e->capture->invalid = true;
    return invalidate(*s->capture, cudaErrorStreamCaptureMerge);
  }
  s->capture = e->capture;
  s->before.insert(e->before.begin(), e->before.end());
  return done(cudaSuccess);
}
cudaError_t cudaStreamGetFlags(cudaStream_t handle, unsigned* flags) {
  std::lock_guard lock(streams().mutex);
  Stream* s = find(handle);
  if (!s) return done(cudaErrorInvalidResourceHandle);
  *flags = s->flags;
  return done(cudaSuccess);
}
cudaError_t cudaStreamGetPriority(cudaStream_t handle, int* priority) {
  std::lock_guard lock(streams().mutex);
  Stream* s = find(handle);
  if (!s) return done(cudaErrorInvalidResourceHandle);
  *priority = s->priority;
  return done(cudaSuccess);
}
cudaError_t cudaStreamGetDevice(cudaStream_t, int* d) {
  *d = 0;
  return done(cudaSuccess);
}
cudaError_t cudaStreamGetId(cudaStream_t s, unsigned long long* id) {
  *id = reinterpret_cast<unsigned long long>(s);
  return done(cudaSuccess);
}
cudaError_t cudaStreamSetAttribute(cudaStream_t, cudaStreamAttrID, cudaStreamAttrValue const*) {
  return done(cudaSuccess);
}
cudaError_t cudaStreamAttachMemAsync(cudaStream_t, void*, size_t, unsigned) { return done(cudaSuccess); }
cudaError_t cudaStreamAddCallback(cudaStream_t s, cudaStreamCallback_t fn, void* data, unsigned) {
  if (cudaError_t e = wait_for(s); e != cudaSuccess) return e;
  fn(s, cudaSuccess, data);
  return done(cudaSuccess);
}
cudaError_t cudaLaunchHostFunc(cudaStream_t s, cudaHostFn_t fn, void* data) {
  return submit(s, [=] {
    fn(data);
    return done(cudaSuccess);
  });
}

// --- events -------------------------------------------------------------------------------------

cudaError_t cudaEventCreateWithFlags(cudaEvent_t* e, unsigned flags) {
  auto* event = new Event;
  event->timed = !(flags & cudaEventDisableTiming);
  std::lock_guard lock(streams().mutex);
  streams().events.insert(event);
  *e = reinterpret_cast<cudaEvent_t>(event);
  return done(cudaSuccess);
}
cudaError_t cudaEventCreate(cudaEvent_t* e) { return cudaEventCreateWithFlags(e, cudaEventDefault); }
cudaError_t cudaEventDestroy(cudaEvent_t handle) {
  std::lock_guard lock(streams().mutex);
  Event* e = find(handle);
  if (!e) return done(cudaErrorInvalidResourceHandle);
  streams().events.erase(e);
  delete e;
  return done(cudaSuccess);
}
cudaError_t cudaEventRecord(cudaEvent_t event, cudaStream_t handle) {
  std::lock_guard lock(streams().mutex);
  Stream* s = find(handle);
  Event* e = find(event);
  if (!s || !e) return done(cudaErrorInvalidResourceHandle);
  e->capture = s->capture;
  e->before = s->before;
  e->recorded = true;
  e->ms = now_ms();
  return done(cudaSuccess);
}
cudaError_t cudaEventRecordWithFlags(cudaEvent_t e, cudaStream_t s, unsigned) { return cudaEventRecord(e, s); }
cudaError_t cudaEventSynchronize(cudaEvent_t e) { return wait_for(e); }
cudaError_t cudaEventQuery(cudaEvent_t e) { return wait_for(e); }
cudaError_t cudaEventElapsedTime(float* ms, cudaEvent_t start, cudaEvent_t stop) {
  std::lock_guard lock(streams().mutex);
  Event *a = find(start), *b = find(stop);
  for (Event* e : {a, b})
    if (!e || !e->timed || !e->recorded || e->capture) return done(cudaErrorInvalidResourceHandle);
  *ms = float(b->ms - a->ms);
  return done(cudaSuccess);
}

// --- capture and graphs -------------------------------------------------------------------------

cudaError_t cudaStreamBeginCapture(cudaStream_t handle, cudaStreamCaptureMode mode) {
  std::lock_guard lock(streams().mutex);
  Stream* s = find(handle);
  if (!s) return done(cudaErrorInvalidResourceHandle);
  if (s == &streams().standard) return done(cudaErrorStreamCaptureUnsupported);
  if (s->capture) return done(cudaErrorIllegalState);
  s->capture = std::make_shared<Capture>();
  s->capture->mode = mode;
  s->origin = true;
  return done(cudaSuccess);
}
cudaError_t cudaStreamEndCapture(cudaStream_t handle, cudaGraph_t* graph) {
  *graph = nullptr;
  std::lock_guard lock(streams().mutex);
  Stream* s = find(handle);
  if (!s) return done(cudaErrorInvalidResourceHandle);
  if (!s->capture) return done(cudaErrorIllegalState);
  if (!s->origin) return invalidate(*s->capture, cudaErrorStreamCaptureUnmatched);
  auto c = s->capture;
  if (c->mode != cudaStreamCaptureModeRelaxed && c->thread != std::this_thread::get_id())
    return invalidate(*c, cudaErrorStreamCaptureWrongThread);
  bool joined = s->before.size() == c->work.size();
  end(*c);
  if (c->invalid) return done(cudaErrorStreamCaptureInvalidated);
  if (!joined) return done(cudaErrorStreamCaptureUnjoined);
  auto* g = new Graph{std::make_shared<Recorded const>(std::move(c->work))};
  *graph = reinterpret_cast<cudaGraph_t>(g);
  return done(cudaSuccess);
}
cudaError_t cudaStreamIsCapturing(cudaStream_t handle, cudaStreamCaptureStatus* status) {
  std::lock_guard lock(streams().mutex);
  Stream* s = find(handle);
  if (!s) return done(cudaErrorInvalidResourceHandle);
  *status = !s->capture           ? cudaStreamCaptureStatusNone
            : s->capture->invalid ? cudaStreamCaptureStatusInvalidated
                                  : cudaStreamCaptureStatusActive;
  return done(cudaSuccess);
}
cudaError_t cudaThreadExchangeStreamCaptureMode(cudaStreamCaptureMode* mode) {
  std::swap(*mode, thread_mode);
  return done(cudaSuccess);
}
cudaError_t cudaGraphGetNodes(cudaGraph_t g, cudaGraphNode_t* nodes, size_t* n) {
  if (nodes) return done(cudaErrorNotSupported);
  *n = graph_of(g)->work->size();
  return done(cudaSuccess);
}
cudaError_t cudaGraphInstantiate(cudaGraphExec_t* exec, cudaGraph_t g, unsigned long long) {
  *exec = reinterpret_cast<cudaGraphExec_t>(new Graph(*graph_of(g)));
  return done(cudaSuccess);
}
cudaError_t cudaGraphInstantiateWithFlags(cudaGraphExec_t* exec, cudaGraph_t g, unsigned long long flags) {
  return cudaGraphInstantiate(exec, g, flags);
}
cudaError_t cudaGraphExecUpdate(cudaGraphExec_t exec, cudaGraph_t g, cudaGraphExecUpdateResultInfo* result) {
  *result = {};
  if (graph_of(exec)->work->size() != graph_of(g)->work->size()) {
    result->result = cudaGraphExecUpdateErrorTopologyChanged;
    return done(cudaErrorGraphExecUpdateFailure);
  }
  *graph_of(exec) = *graph_of(g);
  return done(cudaSuccess);
}
cudaError_t cudaGraphUpload(cudaGraphExec_t, cudaStream_t) { return done(cudaSuccess); }
cudaError_t cudaGraphLaunch(cudaGraphExec_t exec, cudaStream_t s) {
  return submit(s, [work = graph_of(exec)->work] {
    for (Work const& one : *work)
      if (cudaError_t e = one(); e != cudaSuccess) return e;
    return done(cudaSuccess);
  });
}
cudaError_t cudaGraphDestroy(cudaGraph_t g) {
  delete graph_of(g);
  return done(cudaSuccess);
}
cudaError_t cudaGraphExecDestroy(cudaGraphExec_t g) {
  delete graph_of(g);
  return done(cudaSuccess);
}

}  // extern "C"
