// Work shared by threads that live for one call: nothing is left running that a fork of the process could lose.
#pragma once

#include <atomic>
#include <cstdint>
#include <functional>

namespace modelassay {

// Hands out 0, 1, ... num_items - 1, each once, to whoever asks next; `stop` ends it early.
class WorkQueue {
 public:
  explicit WorkQueue(std::int64_t num_items) : num_items_(num_items) {}
  bool next(std::int64_t& item) {
    item = next_.fetch_add(1, std::memory_order_relaxed);
    return item < num_items_;
  }
  void stop() { next_.store(num_items_, std::memory_order_relaxed); }

 private:
  std::int64_t num_items_;
  std::atomic<std::int64_t> next_{0};
};

// Calls make_worker() once on each of num_threads threads, the calling one among them, and the function it returns for
// every item, in any order. Returns when all is done; the first exception thrown ends the work and is rethrown.
using Worker = std::function<void(std::int64_t item)>;
void for_each_item(std::int64_t num_items, int num_threads, const std::function<Worker()>& make_worker);

constexpr std::int64_t kSmallBytes = 1 << 20;  // less is read before a thread has started

// The threads that so many bytes are worth: one, or all that are offered.
constexpr int threads_for(std::int64_t num_bytes, int num_threads) { return num_bytes < kSmallBytes ? 1 : num_threads; }

}  // namespace modelassay
