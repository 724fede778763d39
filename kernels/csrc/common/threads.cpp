#include "common/threads.hpp"

#include <algorithm>
#include <exception>
#include <mutex>
#include <system_error>
#include <thread>
#include <vector>

namespace modelassay {

void for_each_item(std::int64_t num_items, int num_threads, const std::function<Worker()>& make_worker) {
  WorkQueue queue(num_items);
  std::exception_ptr error;
  std::mutex error_guard;
  const auto work = [&] {
    try {
      const Worker worker = make_worker();
      std::int64_t item;
      while (queue.next(item)) worker(item);
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
      threads.emplace_back(work);
    } catch (const std::system_error&) {
      break;  // the machine gives no more threads: the queue is emptied by those there are
    }
  }
  work();
  for (std::thread& thread : threads) thread.join();
  if (error) std::rethrow_exception(error);
}

}  // namespace modelassay
