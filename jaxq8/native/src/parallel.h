// Threads: the team of the OpenMP runtime that oneDNN brings, so that there is never a second team beside it.
#pragma once

#include <cstdint>

namespace jaxq8 {

// How many threads this thread's parallel regions have; 1 after a fork and where the runtime is not OpenMP.
int Threads();

// Makes it so for the calling thread until the end of the scope: oneDNN's primitives and their scratch memory are made for a
// number of threads.
class ThreadsScope {
 public:
  explicit ThreadsScope(int threads);
  ~ThreadsScope();
  ThreadsScope(const ThreadsScope&) = delete;

 private:
  int before_;
};

// How many forks lie between the process that loaded the library and this one. A forked process has none of the team's threads,
// and OpenMP would wait for them.
int64_t Forks();

// The lock that forks wait for. Everything that is shared between calls is short, so one is enough.
void Lock();
void Unlock();

struct Locked {
  Locked() { Lock(); }
  ~Locked() { Unlock(); }
  Locked(const Locked&) = delete;
};

using RangeFunction = void (*)(const void* context, int64_t begin, int64_t end);
void ParallelRanges(int64_t n, int64_t bytes, RangeFunction function, const void* context);

// Calls function(begin, end) for parts of 0..n. `bytes` is what the whole moves: waking a thread costs microseconds, so small
// work stays on this one.
template <typename F>
void Parallel(int64_t n, int64_t bytes, const F& function) {
  ParallelRanges(
      n, bytes, [](const void* f, int64_t begin, int64_t end) { (*static_cast<const F*>(f))(begin, end); }, &function);
}

}  // namespace jaxq8
