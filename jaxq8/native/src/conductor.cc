#include "conductor.h"

#include <condition_variable>
#include <deque>
#include <exception>
#include <mutex>
#include <thread>

#include "parallel.h"

namespace jaxq8 {
namespace {

struct Job {
  void (*function)(void*);
  void* context;
  std::exception_ptr failure;
  bool done = false;
};

class Conductor {
 public:
  Conductor() { std::thread([this] { Work(); }).detach(); }

  void Run(Job& job) {
    std::unique_lock<std::mutex> lock(mutex_);
    jobs_.push_back(&job);
    wanted_.notify_one();
    done_.wait(lock, [&] { return job.done; });
  }

 private:
  [[noreturn]] void Work() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      wanted_.wait(lock, [&] { return !jobs_.empty(); });
      Job& job = *jobs_.front();
      jobs_.pop_front();
      lock.unlock();
      try {
        job.function(job.context);
      } catch (...) {
        job.failure = std::current_exception();
      }
      lock.lock();
      job.done = true;
      done_.notify_all();
    }
  }

  std::mutex mutex_;
  std::condition_variable wanted_, done_;
  std::deque<Job*> jobs_;
};

}  // namespace

void Conduct(void (*function)(void*), void* context) {
  if (Forks()) return function(context);
  static Conductor* const conductor = new Conductor;  // never destroyed: its thread does not end
  Job job{function, context, nullptr};
  conductor->Run(job);
  if (job.failure) std::rethrow_exception(job.failure);
}

}  // namespace jaxq8
