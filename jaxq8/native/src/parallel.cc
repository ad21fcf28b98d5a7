#include "parallel.h"

#include <dlfcn.h>
#include <pthread.h>

#include <algorithm>
#include <atomic>

#include "oneapi/dnnl/dnnl.h"

namespace jaxq8 {
namespace {

constexpr int64_t kBytesPerThread = 96 << 10;

// The functions of OpenMP's C interface, from whatever runtime oneDNN has loaded: GCC's, LLVM's and Intel's all have them. So
// this library needs no OpenMP of its own compiler.
struct OpenMp {
  void (*parallel)(void (*)(void*), void*, unsigned, unsigned) = nullptr;
  int (*thread)() = nullptr;
  int (*team)() = nullptr;
  int (*most)() = nullptr;
  int (*inside)() = nullptr;
  void (*set)(int) = nullptr;

  OpenMp() {
    Dl_info info;
    if (!dladdr(reinterpret_cast<void*>(&dnnl_version), &info) || !info.dli_fname) return;
    void* library = dlopen(info.dli_fname, RTLD_LAZY | RTLD_NOLOAD);
    if (!library) return;
    Find(library, "GOMP_parallel", parallel);
    Find(library, "omp_get_thread_num", thread);
    Find(library, "omp_get_num_threads", team);
    Find(library, "omp_get_max_threads", most);
    Find(library, "omp_in_parallel", inside);
    Find(library, "omp_set_num_threads", set);
  }

  bool there() const { return parallel && thread && team && most && inside && set; }

  template <typename F>
  static void Find(void* library, const char* name, F& function) {
    function = reinterpret_cast<F>(dlsym(library, name));
  }
};

const OpenMp& Runtime() {
  static const OpenMp* runtime = new OpenMp;  // never destroyed: calls may come while the interpreter exits
  return *runtime;
}

std::atomic<int64_t> forks{0};
pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

void AfterForkInChild() {
  forks.fetch_add(1);
  pthread_mutex_unlock(&mutex);
}

[[maybe_unused]] const int registered = pthread_atfork([] { pthread_mutex_lock(&mutex); }, [] { pthread_mutex_unlock(&mutex); }, AfterForkInChild);

struct Ranges {
  int64_t n;
  RangeFunction function;
  const void* context;
};

void RunPart(void* data) {
  const Ranges& ranges = *static_cast<const Ranges*>(data);
  const int64_t i = Runtime().thread(), parts = Runtime().team();
  const int64_t begin = ranges.n * i / parts, end = ranges.n * (i + 1) / parts;
  if (begin < end) ranges.function(ranges.context, begin, end);
}

}  // namespace

void Lock() { pthread_mutex_lock(&mutex); }
void Unlock() { pthread_mutex_unlock(&mutex); }

int64_t Forks() { return forks.load(std::memory_order_relaxed); }

int Threads() {
  if (Forks() || !Runtime().there() || Runtime().inside()) return 1;
  return std::max(1, Runtime().most());
}

ThreadsScope::ThreadsScope(int threads) : before_(0) {
  if (!Runtime().set || !Runtime().most) return;
  const int now = Runtime().most();
  if (now == threads) return;
  before_ = now;
  Runtime().set(threads);
}

ThreadsScope::~ThreadsScope() {
  if (before_) Runtime().set(before_);
}

void ParallelRanges(int64_t n, int64_t bytes, RangeFunction function, const void* context) {
  if (n <= 0) return;
  const int64_t wanted = std::min({n, bytes / kBytesPerThread, static_cast<int64_t>(1024)});
  const int64_t threads = wanted < 2 ? 1 : std::min<int64_t>(wanted, Threads());
  if (threads < 2) return function(context, 0, n);
  Ranges ranges{n, function, context};
  Runtime().parallel(RunPart, &ranges, static_cast<unsigned>(threads), 0);
}

}  // namespace jaxq8
