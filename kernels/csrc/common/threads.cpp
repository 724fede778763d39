#include "common/threads.hpp"

#include <chrono>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace modelassay {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kPatience = std::chrono::milliseconds(50);

bool (*interrupt_check)() = nullptr;

// Of the thread that runs now: the queue it works on, and whether it may ask the user.
thread_local WorkQueue* current_queue = nullptr;
thread_local bool helps = false;
thread_local Clock::time_point last_asked{};

// Makes a queue that of this thread, for as long as it lives; a call may come from within another's.
class OnQueue {
 public:
  explicit OnQueue(WorkQueue& queue) : before_(current_queue) { current_queue = &queue; }
  OnQueue(const OnQueue&) = delete;
  OnQueue& operator=(const OnQueue&) = delete;
  ~OnQueue() { current_queue = before_; }

 private:
  WorkQueue* before_;
};

}  // namespace

void set_interrupt_check(bool (*check)()) { interrupt_check = check; }

void pause() {
  if (current_queue != nullptr && current_queue->stopped()) throw Interrupted();
  if (helps || interrupt_check == nullptr) return;
  const Clock::time_point now = Clock::now();
  if (now - last_asked < kPatience) return;
  last_asked = now;
  if (!interrupt_check()) return;
  if (current_queue != nullptr) current_queue->stop();
  throw Interrupted();
}

void for_each_item(std::int64_t num_items, int num_threads, const std::function<Worker()>& make_worker) {
  WorkQueue queue(num_items);
  std::exception_ptr error;
  std::mutex error_guard;
  const auto work = [&] {
    const OnQueue here(queue);
    try {
      const Worker worker = make_worker();
      std::int64_t item;
      while (queue.next(item)) {
        pause();
        worker(item);
      }
    } catch (...) {
      const std::lock_guard lock(error_guard);
      if (!error) error = std::current_exception();
      queue.stop();
    }
  };
  const std::int64_t num_workers = std::clamp<std::int64_t>(num_threads, 1, std::max<std::int64_t>(num_items, 1));
  std::vector<std::thread> threads;
  threads.reserve(static_cast<std::size_t>(num_workers));
  for (std::int64_t i = 1; i < num_workers; ++i) {
    try {
      threads.emplace_back([&] {
        helps = true;
        work();
      });
    } catch (const std::system_error&) {
      break;  // the machine gives no more threads: the queue is emptied by those there are
    }
  }
  work();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace modelassay
