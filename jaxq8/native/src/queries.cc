// The C functions for ctypes: each returns 0, or an error code with its text in jaxq8_native_error().
#include <algorithm>
#include <cstring>

#include "oneapi/dnnl/dnnl.h"
#include "parallel.h"
#include "region.h"

namespace {

thread_local std::string last_error;

template <typename F>
int Guarded(const F& f) {
  try {
    f();
    return 0;
  } catch (const std::exception& error) {
    last_error = error.what();
  } catch (...) {
    last_error = "unknown failure";
  }
  return 1;
}

// The names that oneDNN's documentation has for instruction sets, the largest first.
const char* IsaName() {
  const int isa = static_cast<int>(dnnl_get_effective_cpu_isa());
  constexpr struct { int bits; const char* name; } names[] = {
      {0x1fef, "AVX512_CORE_AMX_FP16"}, {0xfef, "AVX512_CORE_AMX"}, {0x1ef, "AVX512_CORE_FP16"}, {0xe7, "AVX512_CORE_BF16"},
      {0x67, "AVX512_CORE_VNNI"}, {0x27, "AVX512_CORE"}, {0x1f, "AVX2_VNNI_2"}, {0xf, "AVX2_VNNI"}, {0x7, "AVX2"}};
  for (const auto& entry : names) {
    if ((isa & entry.bits) == entry.bits) return entry.name;
  }
  return "SSE41";
}

void Write(const std::string& text, char* out, int64_t capacity) {
  if (capacity < static_cast<int64_t>(text.size()) + 1) throw jaxq8::ProgramError("the text needs more room");
  std::memcpy(out, text.c_str(), text.size() + 1);
}

}  // namespace

#pragma GCC visibility push(default)
extern "C" {

const char* jaxq8_native_error() { return last_error.c_str(); }

int jaxq8_native_describe(char* out, int64_t capacity) {
  return Guarded([&] {
    const dnnl_version_t* v = dnnl_version();
    const std::string text = "{\"onednn\": \"" + std::to_string(v->major) + "." + std::to_string(v->minor) + "." +
                             std::to_string(v->patch) + "\", \"isa\": \"" + IsaName() +
                             "\", \"runtime\": " + std::to_string(v->cpu_runtime) +
                             ", \"threads\": " + std::to_string(jaxq8::Threads()) + "}";
    Write(text, out, capacity);
  });
}

int jaxq8_native_layout(const int64_t* problem, int64_t n, int64_t* out, int64_t capacity) {
  return Guarded([&] {
    const std::vector<int64_t> words = jaxq8::LayoutWords(jaxq8::ParseProblem(problem, static_cast<size_t>(n)));
    if (capacity < static_cast<int64_t>(words.size())) throw jaxq8::ProgramError("the words need more room");
    std::copy(words.begin(), words.end(), out);
  });
}

// A line of text for each step, with the names of the implementations that oneDNN chose.
int jaxq8_native_implementations(const int64_t* words, int64_t n, char* out, int64_t capacity) {
  return Guarded([&] { Write(jaxq8::Region(jaxq8::Parse(words, static_cast<size_t>(n))).Describe(), out, capacity); });
}

}  // extern "C"
#pragma GCC visibility pop
