// Per-launch statistics as JSON lines.
#include "stats.hpp"

#include <algorithm>
#include <cstdio>

namespace ptxrun {

void Stats::add(Stats const& o) {
  for (size_t i = 0; i < warp.size(); ++i) warp[i] += o.warp[i], thread[i] += o.thread[i];
  auto mem = [](MemStats& a, MemStats const& b) {
    a.requests += b.requests;
    a.sectors += b.sectors;
    a.useful += b.useful;
  };
  mem(ld, o.ld);
  mem(st, o.st);
  mem(atom, o.atom);
  for (size_t i = 0; i < shared.size(); ++i)
    shared[i].requests += o.shared[i].requests, shared[i].wavefronts += o.shared[i].wavefronts;
  barriers += o.barriers;
  divergent_branches += o.divergent_branches;
}

namespace {

std::string escaped(std::string const& s) {
  std::string r;
  for (char c : s) {
    if (c == '"' || c == '\\') r += '\\';
    if (uint8_t(c) >= 32) r += c;
  }
  return r;
}

}  // namespace

void write_stats(LaunchState& ls) {
  Stats const& s = ls.total;
  uint64_t read = 0, written = 0, warp = 0, thread = 0;
  MemoryMap& mm = MemoryMap::get();
  {
    std::lock_guard lock(mm.mutex);
    for (auto& [base, a] : mm.by_base) {
      for (auto& t : a->touched) {
        uint8_t v = t.load(std::memory_order_relaxed);
        read += (v & 1) * 32;
        written += (v >> 1 & 1) * 32;
      }
      a->touched.clear();
    }
  }
  for (size_t i = 0; i < s.warp.size(); ++i) warp += s.warp[i], thread += s.thread[i];
  std::string const& path = Options::get().stats_file;
  FILE* f = path == "-" ? stderr : std::fopen(path.c_str(), "a");
  if (!f) return;
  std::string name = escaped(demangle(ls.prog->info.name));
  auto u = [](uint64_t v) { return (unsigned long long)v; };
  std::fprintf(
      f,
      "{\"kernel\":\"%s\",\"grid\":[%u,%u,%u],\"block\":[%u,%u,%u],\"shared_bytes\":%u,\"failed\":%s,\"seconds\":%.6f,",
      name.c_str(), ls.cfg.grid.x, ls.cfg.grid.y, ls.cfg.grid.z, ls.cfg.block.x, ls.cfg.block.y, ls.cfg.block.z,
      ls.shared_bytes, ls.failed ? "true" : "false", ls.seconds);
  std::fprintf(
      f,
      "\"warp_insts\":%llu,\"thread_insts\":%llu,\"avg_active_lanes\":%.2f,\"divergent_branches\":%llu,\"by_class\":{",
      u(warp), u(thread), warp ? double(thread) / double(warp) : 0.0, u(s.divergent_branches));
  bool first = true;
  for (size_t i = 0; i < s.warp.size(); ++i) {
    if (!s.warp[i]) continue;
    std::fprintf(f, "%s\"%s\":{\"warp\":%llu,\"thread\":%llu}", first ? "" : ",", kClsNames[i], u(s.warp[i]),
                 u(s.thread[i]));
    first = false;
  }
  std::fprintf(f, "},\"global\":{");
  const std::pair<char const*, MemStats const*> kinds[] = {{"load", &s.ld}, {"store", &s.st}, {"atomic", &s.atom}};
  for (auto& [n, m] : kinds)
    std::fprintf(f, "\"%s\":{\"requests\":%llu,\"sectors\":%llu,\"useful_bytes\":%llu,\"efficiency\":%.4f},", n,
                 u(m->requests), u(m->sectors), u(m->useful),
                 m->sectors ? double(m->useful) / double(m->sectors * 32) : 1.0);
  std::fprintf(f, "\"unique_bytes_read\":%llu,\"unique_bytes_written\":%llu},", u(read), u(written));
  SharedStats sum;
  for (SharedStats const& k : s.shared) sum.requests += k.requests, sum.wavefronts += k.wavefronts;
  std::fprintf(f, "\"shared\":{\"requests\":%llu,\"wavefronts\":%llu,\"by_kind\":{", u(sum.requests),
               u(sum.wavefronts));
  first = true;
  for (size_t i = 0; i < s.shared.size(); ++i) {
    if (!s.shared[i].requests) continue;
    std::fprintf(f, "%s\"%s\":{\"requests\":%llu,\"wavefronts\":%llu}", first ? "" : ",", kSharedKindNames[i],
                 u(s.shared[i].requests), u(s.shared[i].wavefronts));
    first = false;
  }
  std::fprintf(f, "}},\"barrier_arrivals\":%llu}\n", u(s.barriers));
  if (f != stderr) std::fclose(f);
}

// The profile: counts by PTX line and by source line. A file name that ends in ".json" gets one object per
// launch with all lines; any other a table of the lines that lead in one of the columns.
void write_profile(LaunchState& ls) {
  Program const& p = *ls.prog;
  ModuleImpl const& m = *p.module;
  struct Line {
    LineCount n;
    uint32_t ptx = 0;
    std::string source;
  };
  std::map<uint32_t, Line> by_ptx;
  std::map<std::string, Line> by_source;
  LineCount sum;
  for (size_t i = 0; i < ls.lines.size(); ++i) {
    LineCount const& n = ls.lines[i];
    if (!n.warp) continue;
    sum.add(n);
    Line& l = by_ptx[p.code[i].line];
    l.n.add(n);
    if (l.source.empty()) l.source = m.user_line(p.code[i].src);
    l.ptx = p.code[i].line;
    if (m.files.empty()) continue;  // compiled without -lineinfo
    Line& s = by_source[l.source];
    s.n.add(n);
    s.source = l.source;
  }
  using Field = uint64_t LineCount::*;
  auto sorted = [](auto& map, size_t limit) {
    std::vector<Line const*> v, out;
    for (auto& [k, l] : map) v.push_back(&l);
    std::unordered_set<Line const*> chosen;
    for (Field f : {&LineCount::wavefronts, &LineCount::sectors, &LineCount::warp}) {  // the last one gives the order
      std::stable_sort(v.begin(), v.end(), [&](auto* a, auto* b) { return a->n.*f > b->n.*f; });
      for (size_t i = 0; i < v.size() && i < limit && v[i]->n.*f; ++i) chosen.insert(v[i]);
    }
    for (auto* l : v)
      if (chosen.count(l)) out.push_back(l);
    return out;
  };
  std::vector<std::string_view> text{{}};  // PTX lines, counted from 1
  for (size_t at = 0, end; at < m.text.size(); at = end + 1) {
    end = std::min(m.text.find('\n', at), m.text.size());
    size_t first = std::min(m.text.find_first_not_of(" \t", at), end);
    text.push_back(std::string_view(m.text).substr(first, end - first));
  }
  std::string const& path = Options::get().profile_file;
  FILE* f = path == "-" ? stderr : std::fopen(path.c_str(), "a");
  if (!f) return;
  auto u = [](uint64_t v) { return (unsigned long long)v; };
  std::string name = demangle(p.info.name);
  if (path.ends_with(".json")) {
    auto list = [&](auto& map, bool ptx) {
      bool first = true;
      for (Line const* l : sorted(map, ~size_t(0))) {
        std::fprintf(f, "%s{", first ? "" : ",");
        if (ptx) std::fprintf(f, "\"line\":%u,\"text\":\"%s\",", l->ptx, escaped(std::string(text[l->ptx])).c_str());
        std::fprintf(f,
                     "\"source\":\"%s\",\"warp_insts\":%llu,\"thread_insts\":%llu,\"shared_wavefronts\":%llu,\"global_"
                     "sectors\":%llu}",
                     escaped(l->source).c_str(), u(l->n.warp), u(l->n.thread), u(l->n.wavefronts), u(l->n.sectors));
        first = false;
      }
    };
    std::fprintf(f,
                 "{\"kernel\":\"%s\",\"warp_insts\":%llu,\"thread_insts\":%llu,\"shared_wavefronts\":%llu,\"global_"
                 "sectors\":%llu,\"ptx_lines\":[",
                 escaped(name).c_str(), u(sum.warp), u(sum.thread), u(sum.wavefronts), u(sum.sectors));
    list(by_ptx, true);
    std::fprintf(f, "],\"source_lines\":[");
    list(by_source, false);
    std::fprintf(f, "]}\n");
  } else {
    auto row = [&](LineCount const& n, std::string const& what) {
      std::fprintf(f, "%12llu %5.1f%% %14llu %12llu %12llu  %s\n", u(n.warp),
                   sum.warp ? 100.0 * double(n.warp) / double(sum.warp) : 0.0, u(n.thread), u(n.wavefronts),
                   u(n.sectors), what.c_str());
    };
    const size_t top = 12;
    std::fprintf(f, "%s\n  warp insts             thread insts   sh. wavefr.  glob. sect.\n", name.c_str());
    row(sum, "total");
    for (Line const* l : sorted(by_source, top)) row(l->n, l->source.empty() ? "(no source line)" : l->source);
    for (Line const* l : sorted(by_ptx, top)) {
      std::string s = "PTX " + std::to_string(l->ptx) + ": " + std::string(text[l->ptx]);
      for (char& c : s)
        if (c == '\t') c = ' ';
      row(l->n, l->source.empty() ? s : s + "  " + l->source.substr(l->source.rfind('/') + 1));
    }
    std::fprintf(f, "\n");
  }
  if (f != stderr) std::fclose(f);
}

}  // namespace ptxrun
