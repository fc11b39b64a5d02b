// ptxrun-check FILE.ptx...: decodes every kernel and reports what is not implemented.
#include <cstdio>
#include <fstream>
#include <iterator>
#include <map>

#include "ptxrun.hpp"

int main(int argc, char** argv) {
  int bad = 0, good = 0;
  for (int i = 1; i < argc; ++i) {
    std::ifstream f(argv[i]);
    std::string text((std::istreambuf_iterator<char>(f)), {});
    std::map<std::string, int> messages;
    try {
      auto m = ptxrun::Module::load(text);
      for (auto& name : m.kernel_names()) {
        try {
          m.kernel(name);
          ++good;
        } catch (ptxrun::ParseError const& e) {
          ++bad;
          std::string s = e.what();
          size_t at = s.rfind("PTX line");
          ++messages[at == std::string::npos ? s : s.substr(s.find(':', at) + 1)];
        }
      }
    } catch (ptxrun::ParseError const& e) {
      ++bad;
      ++messages[e.what()];
    }
    for (auto& [said, n] : messages) std::printf("%s: %s (%d kernels)\n", argv[i], said.c_str(), n);
  }
  std::printf("%d kernels decoded, %d not\n", good, bad);
  return bad != 0;
}
