// CUB device-wide algorithms and block/warp primitives against host results.
#include <algorithm>
#include <cub/cub.cuh>
#include <numeric>

#include "check.hpp"

template <typename F>
static void with_temp(F f) {
  size_t bytes = 0;
  CUDA_OK(f(nullptr, bytes));
  DeviceBuffer<char> temp(bytes);
  CUDA_OK(f(temp.ptr, bytes));
  CUDA_OK(cudaDeviceSynchronize());
}

template <typename T>
static std::vector<T> random_ints(size_t n, uint32_t seed, uint64_t mod) {
  std::mt19937_64 rng(seed);
  std::vector<T> v(n);
  for (auto& x : v) x = static_cast<T>(rng() % mod);
  return v;
}

struct IsEven {
  __host__ __device__ bool operator()(int x) const { return (x & 1) == 0; }
};

static void test_scan(int n) {
  auto in = random_ints<int>(n, 1, 100);
  DeviceBuffer<int> d_in(in), d_out(n);
  with_temp([&](void* t, size_t& b) { return cub::DeviceScan::ExclusiveSum(t, b, d_in.ptr, d_out.ptr, n); });
  std::vector<int> want(n);
  std::exclusive_scan(in.begin(), in.end(), want.begin(), 0);
  CHECK(d_out.host() == want);
  with_temp([&](void* t, size_t& b) { return cub::DeviceScan::InclusiveSum(t, b, d_in.ptr, d_out.ptr, n); });
  std::inclusive_scan(in.begin(), in.end(), want.begin());
  CHECK(d_out.host() == want);
  DeviceBuffer<double> d_fd(n);
  with_temp([&](void* t, size_t& b) { return cub::DeviceScan::InclusiveSum(t, b, d_in.ptr, d_fd.ptr, n); });
  auto fd = d_fd.host();
  bool ok = true;
  for (int i = 0; i < n; ++i) ok &= fd[i] == want[i];
  CHECK(ok);
}

template <typename K>
static void test_sort(int n, uint64_t mod) {
  auto keys = random_ints<K>(n, 2, mod);
  std::vector<int> vals(n);
  std::iota(vals.begin(), vals.end(), 0);
  DeviceBuffer<K> k_in(keys), k_out(n);
  DeviceBuffer<int> v_in(vals), v_out(n);
  with_temp([&](void* t, size_t& b) {
    return cub::DeviceRadixSort::SortPairs(t, b, k_in.ptr, k_out.ptr, v_in.ptr, v_out.ptr, n);
  });
  std::vector<int> want = vals;
  std::stable_sort(want.begin(), want.end(), [&](int a, int b) { return keys[a] < keys[b]; });
  CHECK(v_out.host() == want);
  with_temp([&](void* t, size_t& b) { return cub::DeviceRadixSort::SortKeysDescending(t, b, k_in.ptr, k_out.ptr, n); });
  auto sorted = keys;
  std::sort(sorted.begin(), sorted.end(), std::greater<K>());
  CHECK(k_out.host() == sorted);
}

struct ByLastDigit {
  __host__ __device__ bool operator()(float a, float b) const {
    int x = (int)a % 10, y = (int)b % 10;
    return x != y ? x < y : a < b;
  }
};

static void test_merge_sort(int n) {
  auto in = random_ints<int>(n, 4, 1000);
  std::vector<float> keys(in.begin(), in.end());
  DeviceBuffer<float> d_keys(keys);
  with_temp([&](void* t, size_t& b) { return cub::DeviceMergeSort::SortKeys(t, b, d_keys.ptr, n, ByLastDigit{}); });
  std::sort(keys.begin(), keys.end(), ByLastDigit{});
  CHECK(d_keys.host() == keys);
}

static void test_select(int n) {
  auto in = random_ints<int>(n, 3, 1000);
  DeviceBuffer<int> d_in(in), d_out(n), d_num(1);
  with_temp(
      [&](void* t, size_t& b) { return cub::DeviceSelect::If(t, b, d_in.ptr, d_out.ptr, d_num.ptr, n, IsEven{}); });
  std::vector<int> want;
  std::copy_if(in.begin(), in.end(), std::back_inserter(want), IsEven{});
  CHECK(d_num.host()[0] == (int)want.size());
  auto got = d_out.host();
  got.resize(want.size());
  CHECK(got == want);

  std::sort(in.begin(), in.end());
  DeviceBuffer<int> d_sorted(in), d_counts(n);
  with_temp([&](void* t, size_t& b) {
    return cub::DeviceRunLengthEncode::Encode(t, b, d_sorted.ptr, d_out.ptr, d_counts.ptr, d_num.ptr, n);
  });
  std::vector<int> uniq = in;
  uniq.erase(std::unique(uniq.begin(), uniq.end()), uniq.end());
  CHECK(d_num.host()[0] == (int)uniq.size());
  got = d_out.host();
  got.resize(uniq.size());
  CHECK(got == uniq);
}

static void test_reduce(int segments) {
  std::mt19937 rng(5);
  std::vector<int> offs(segments + 1, 0);
  for (int i = 0; i < segments; ++i) offs[i + 1] = offs[i] + rng() % 700;
  int const n = offs.back();
  std::vector<float> in(n);
  for (auto& x : in) x = (int)(rng() % 200) - 100;
  DeviceBuffer<float> d_in(in), d_out(segments), d_one(1);
  DeviceBuffer<int> d_offs(offs);
  with_temp([&](void* t, size_t& b) {
    return cub::DeviceSegmentedReduce::Sum(t, b, d_in.ptr, d_out.ptr, segments, d_offs.ptr, d_offs.ptr + 1);
  });
  auto got = d_out.host();
  for (int s = 0; s < segments; ++s) {
    float w = 0;
    for (int i = offs[s]; i < offs[s + 1]; ++i) w += in[i];
    CHECK(got[s] == w);
  }
  with_temp([&](void* t, size_t& b) { return cub::DeviceReduce::Max(t, b, d_in.ptr, d_one.ptr, n); });
  CHECK(d_one.host()[0] == *std::max_element(in.begin(), in.end()));
  DeviceBuffer<int64_t> d_arg(1);
  with_temp([&](void* t, size_t& b) { return cub::DeviceReduce::ArgMin(t, b, d_in.ptr, d_one.ptr, d_arg.ptr, n); });
  CHECK(d_arg.host()[0] == std::min_element(in.begin(), in.end()) - in.begin());
}

static void test_histogram(int n) {
  auto in = random_ints<uint8_t>(n, 7, 256);
  DeviceBuffer<uint8_t> d_in(in);
  DeviceBuffer<int> d_h(256);
  with_temp(
      [&](void* t, size_t& b) { return cub::DeviceHistogram::HistogramEven(t, b, d_in.ptr, d_h.ptr, 257, 0, 256, n); });
  std::vector<int> want(256);
  for (auto x : in) ++want[x];
  CHECK(d_h.host() == want);
}

// Block/warp primitives: load, radix sort, scan, top value, warp reduction and warp merge sort.
__global__ void block_kernel(int const* in, int* sorted, int* scanned, int* total, int* warp_max) {
  using Load = cub::BlockLoad<int, 128, 4, cub::BLOCK_LOAD_TRANSPOSE>;
  using Store = cub::BlockStore<int, 128, 4, cub::BLOCK_STORE_WARP_TRANSPOSE>;
  using Sort = cub::BlockRadixSort<int, 128, 4>;
  using Scan = cub::BlockScan<int, 128, cub::BLOCK_SCAN_WARP_SCANS>;
  using Reduce = cub::BlockReduce<int, 128>;
  using WarpReduce = cub::WarpReduce<int>;
  __shared__ union {
    typename Load::TempStorage load;
    typename Store::TempStorage store;
    typename Sort::TempStorage sort;
    typename Scan::TempStorage scan;
    typename Reduce::TempStorage reduce;
    typename WarpReduce::TempStorage warp[4];
  } tmp;
  int base = blockIdx.x * 512, v[4];
  Load(tmp.load).Load(in + base, v);
  __syncthreads();
  int local = max(max(v[0], v[1]), max(v[2], v[3]));
  int m = WarpReduce(tmp.warp[threadIdx.x / 32]).Reduce(local, cuda::maximum<>{});
  if (threadIdx.x % 32 == 0) warp_max[blockIdx.x * 4 + threadIdx.x / 32] = m;
  __syncthreads();
  Sort(tmp.sort).Sort(v);
  __syncthreads();
  int s[4];
  Scan(tmp.scan).InclusiveSum(v, s);
  __syncthreads();
  Store(tmp.store).Store(scanned + base, s);
  __syncthreads();
  int sum = Reduce(tmp.reduce).Sum(v);
  if (threadIdx.x == 0) total[blockIdx.x] = sum;
  __syncthreads();
  Store(tmp.store).Store(sorted + base, v);  // rearranges v
}

static void test_block() {
  int const blocks = 3, n = blocks * 512;
  auto in = random_ints<int>(n, 11, 100000);
  DeviceBuffer<int> d_in(in), d_sorted(n), d_scanned(n), d_total(blocks), d_wm(blocks * 4);
  block_kernel<<<blocks, 128>>>(d_in.ptr, d_sorted.ptr, d_scanned.ptr, d_total.ptr, d_wm.ptr);
  CUDA_OK(cudaDeviceSynchronize());
  auto sorted = d_sorted.host(), scanned = d_scanned.host(), total = d_total.host(), wm = d_wm.host();
  for (int b = 0; b < blocks; ++b) {
    std::vector<int> v(in.begin() + b * 512, in.begin() + (b + 1) * 512);
    for (int w = 0; w < 4; ++w)
      CHECK(wm[b * 4 + w] == *std::max_element(v.begin() + w * 128, v.begin() + (w + 1) * 128));
    std::sort(v.begin(), v.end());
    CHECK(std::equal(v.begin(), v.end(), sorted.begin() + b * 512));
    std::inclusive_scan(v.begin(), v.end(), v.begin());
    CHECK(std::equal(v.begin(), v.end(), scanned.begin() + b * 512));
    CHECK(total[b] == v.back());
  }
}

int main() {
  for (int n : {1, 1000, 50000}) test_scan(n);
  test_sort<uint32_t>(300, 1u << 20);
  test_sort<uint32_t>(30000, 1u << 30);
  test_sort<int64_t>(9000, 1ull << 40);
  test_merge_sort(20000);
  test_select(20000);
  test_reduce(40);
  test_histogram(20000);
  test_block();
  return finish("cub");
}
