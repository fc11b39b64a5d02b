#include "runtime/chat_template.hpp"

#include <spawn.h>
#include <sys/wait.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <memory>
#include <nlohmann/json.hpp>
#include <utility>

#include "kvquant/core/error.hpp"
#include "runtime/quote.hpp"

namespace kvquant::runtime {

namespace {

constexpr std::string_view template_key = "tokenizer.chat_template";

// Exit status 3: jinja2 is missing. A template comes from anywhere, so it gets ten seconds and a gigabyte.
constexpr char script[] = R"python(
import json, resource, sys
from datetime import datetime
try:
    from jinja2.sandbox import ImmutableSandboxedEnvironment
except ImportError:
    sys.exit(3)
resource.setrlimit(resource.RLIMIT_CPU, (10, 10))
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))
def refuse(message):
    raise ValueError(message)
environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
environment.globals.update(raise_exception=refuse, strftime_now=lambda form: datetime.now().strftime(form))
given = json.load(sys.stdin)
try:
    text = environment.from_string(given["template"]).render(**given["values"])
except Exception as failure:
    sys.exit(f"{type(failure).__name__}: {failure}")
sys.stdout.buffer.write(text.encode("utf-8", "replace"))
)python";
constexpr int jinja_missing = 3;

/// A file without a name; a child's standard stream needs no reader or writer while it runs.
class nameless_file {
 public:
  nameless_file() : file_(std::tmpfile()) {
    require(file_ != nullptr, errc::bad_file, "a temporary file cannot be created: ", std::strerror(errno));
  }
  int descriptor() const { return fileno(file_.get()); }
  void write(std::string const& bytes) {
    bool const written = std::fwrite(bytes.data(), 1, bytes.size(), file_.get()) == bytes.size();
    require(written && std::fflush(file_.get()) == 0, errc::bad_file, "a temporary file cannot be written");
    std::rewind(file_.get());
  }
  std::string read() {
    std::rewind(file_.get());
    std::string all;
    std::array<char, 4096> piece;
    while (std::size_t const count = std::fread(piece.data(), 1, piece.size(), file_.get()))
      all.append(piece.data(), count);
    return all;
  }

 private:
  struct close {
    void operator()(std::FILE* file) const noexcept { std::fclose(file); }
  };
  std::unique_ptr<std::FILE, close> file_;
};

/// Runs the script; the exit status, 128 + signal for one that was killed.
int run_python(nameless_file const& in, nameless_file const& out, nameless_file const& errors) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_adddup2(&actions, in.descriptor(), STDIN_FILENO);
  posix_spawn_file_actions_adddup2(&actions, out.descriptor(), STDOUT_FILENO);
  posix_spawn_file_actions_adddup2(&actions, errors.descriptor(), STDERR_FILENO);
  // -I: isolated from the user's Python paths and environment.
  std::array<char const*, 5> const arguments = {"python3", "-I", "-c", script, nullptr};
  pid_t child = 0;
  int const failure =
      posix_spawnp(&child, arguments[0], &actions, nullptr, const_cast<char* const*>(arguments.data()), environ);
  posix_spawn_file_actions_destroy(&actions);
  require(failure == 0, errc::unsupported, "chat template: python3 cannot be run: ", std::strerror(failure));
  int status = 0;
  while (waitpid(child, &status, 0) < 0)
    require(errno == EINTR, errc::bad_file, "chat template: python3 is lost: ", std::strerror(errno));
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

std::string token_text(tokenizer const& words, token_id id) { return id < 0 ? std::string{} : words.piece(id); }

}  // namespace

bool has_chat_template(gguf_file const& file) { return file.contains(template_key); }

std::string render_chat(gguf_file const& file, tokenizer const& words, std::vector<chat_message> const& messages) {
  nlohmann::json values = {{"messages", nlohmann::json::array()},
                           {"add_generation_prompt", true},
                           {"bos_token", token_text(words, words.bos())},
                           {"eos_token", token_text(words, words.eos())}};
  for (chat_message const& it : messages) values["messages"].push_back({{"role", it.role}, {"content", it.content}});
  nlohmann::json const given = {{"template", std::string(file.string(template_key))}, {"values", std::move(values)}};
  nameless_file in, out, errors;
  in.write(given.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace));
  int const status = run_python(in, out, errors);
  require(status != jinja_missing, errc::unsupported,
          "chat template: Python's jinja2 is missing, expected it (Debian: python3-jinja2)");
  if (status != 0)
    throw error{errc::bad_file, text(file.origin(), ": the chat template cannot be rendered: ",
                                     status > 128 ? "too slow or too large" : quote(errors.read()))};
  return out.read();
}

}  // namespace kvquant::runtime
