// Runs the phases of a call on XLA's own threads.
//
// No thread ever waits for a task that has not started. The handler schedules helpers, works along
// with them, and returns a future, which the last task to end fulfils; a helper that starts too
// late finds nothing to do. At the end of a phase, a thread without work looks for a short while
// whether the next phase opens, and leaves otherwise: whoever ends the phase goes on in any case.
#ifndef JAXNORM_JOB_H_
#define JAXNORM_JOB_H_

#include <atomic>
#include <cstdint>
#include <memory>
#include <thread>
#include <utility>

#include "call.h"
#include "xla/ffi/api/ffi.h"

namespace jaxnorm {

namespace ffi = xla::ffi;

// Less is done sooner by one thread. What a helper costs is about what two threads save on 1e5 to
// 3e5 float32 values read and written once.
constexpr int64_t kSerialBytes = 1 << 21;
constexpr int kPatience = 200;  // looks for the next phase

class Job : public std::enable_shared_from_this<Job> {
 public:
  Job(const Call& call, const Plan& plan) : call_(call), plan_(plan) {
    const int64_t doubles =
        plan.moments + plan.sums + plan.parameters + plan.counts + plan.prepared + 2 * plan.means;
    scratch_.reset(new double[static_cast<size_t>(doubles)]);
    double* next = scratch_.get();
    const auto take = [&](int64_t count) { return std::exchange(next, next + count); };
    call_.moments = take(plan.moments);
    call_.sums = take(plan.sums);
    call_.parameters = take(plan.parameters);
    call_.counts = take(plan.counts);
    call_.prepared = take(plan.prepared);
    call_.scratch_along = take(plan.means);
    call_.scratch_total = take(plan.means);
    plan_.prepare(call_);
    for (int i = 0; i < plan.count; ++i) total_ += plan.phases[i].tasks;
  }

  // To be called once.
  ffi::Future run(const ffi::ThreadPool& pool) {
    ffi::Future future(promise_);
    if (total_ == 0) {
      promise_.SetAvailable();
      return future;
    }
    open_ = plan_.phases[0].tasks;
    for (int64_t i = helpers(pool); i > 0; --i) {
      ffi::ThreadPool(pool).Schedule([job = shared_from_this()] { job->work(); });
    }
    work();
    return future;
  }

 private:
  int64_t helpers(const ffi::ThreadPool& pool) const {
    if (plan_.bytes < kSerialBytes) return 0;
    int64_t widest = 0;
    for (int i = 0; i < plan_.count; ++i) widest = std::max(widest, plan_.phases[i].tasks);
    const int64_t cores = std::max(1u, std::thread::hardware_concurrency());
    return std::min({pool.num_threads(), cores, widest}) - 1;
  }

  void work() {
    for (int looks = 0; looks < kPatience;) {
      int64_t task = next_.load(std::memory_order_relaxed);
      const int64_t open = open_.load(std::memory_order_acquire);
      if (task < open) {
        if (next_.compare_exchange_weak(task, task + 1, std::memory_order_relaxed)) {
          looks = 0;
          if (run_task(task)) return;
        }
      } else if (open == total_) {
        return;
      } else {
        ++looks;
        std::this_thread::yield();
      }
    }
  }

  // Whether this was the last task of all.
  bool run_task(int64_t task) {
    int64_t end = 0;
    int phase = 0;
    for (; task >= end + plan_.phases[phase].tasks; ++phase) end += plan_.phases[phase].tasks;
    plan_.phases[phase].run(call_, task - end);
    end += plan_.phases[phase].tasks;
    if (done_.fetch_add(1, std::memory_order_acq_rel) + 1 < end) return false;
    if (end == total_) {
      promise_.SetAvailable();
      return true;
    }
    open_.store(end + plan_.phases[phase + 1].tasks, std::memory_order_release);
    return false;
  }

  Call call_;
  Plan plan_;
  std::unique_ptr<double[]> scratch_;
  ffi::Promise promise_;
  int64_t total_ = 0;
  std::atomic<int64_t> next_{0}, done_{0}, open_{0};
};

}  // namespace jaxnorm

#endif  // JAXNORM_JOB_H_
