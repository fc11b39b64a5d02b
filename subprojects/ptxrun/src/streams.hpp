// Streams, events, and the graphs that are captured from streams. A stream is synchronous: what is submitted has been
// done when the call returns, unless the stream is being captured.
#pragma once
#include <cuda_runtime_api.h>

#include <functional>

namespace ptxrun {

using Work = std::function<cudaError_t()>;

cudaError_t done(cudaError_t e);  // cudart.cpp: what a call returns, remembered as the last error

// Does the work now; or, if the stream is being captured, keeps for the graph what `to_keep` gives. Where `to_keep` is
// empty, graphs cannot hold such work, and the capture ends.
cudaError_t submit(cudaStream_t handle, Work const& work, std::function<Work()> const& to_keep);
inline cudaError_t submit(cudaStream_t handle, Work const& work) {
  return submit(handle, work, [&] { return work; });
}
// For calls that wait for the device, or allocate: an error where a capture forbids them, and then the end of that
// capture.
cudaError_t forbidden_in_capture();

}  // namespace ptxrun
