// Work shared by threads that live for one call: nothing is left running that a fork of the process could lose.
#pragma once

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <exception>
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
  void stop() {
    stopped_.store(true, std::memory_order_relaxed);
    next_.store(num_items_, std::memory_order_relaxed);
  }
  bool stopped() const { return stopped_.load(std::memory_order_relaxed); }

 private:
  std::int64_t num_items_;
  std::atomic<std::int64_t> next_{0};
  std::atomic<bool> stopped_{false};
};

// Calls make_worker() once on each of num_threads threads, the calling one among them, and the function it returns for
// every item, in any order. Returns when all is done; the first exception thrown ends the work and is rethrown.
using Worker = std::function<void(std::int64_t item)>;
void for_each_item(std::int64_t num_items, int num_threads, const std::function<Worker()>& make_worker);

// What `pause` throws where the call is to end before its work.
struct Interrupted : std::exception {
  const char* what() const noexcept override { return "interrupted"; }
};

// Whether the user wants the call to end; asked on the calling thread alone, every 50 ms. The core knows no Python: whoever does
// sets it once, before the first call.
void set_interrupt_check(bool (*check)());

// To be called between pieces of work of some milliseconds; costs a look at the clock. for_each_item does so between its items.
void pause();

constexpr std::int64_t kSmallBytes = 1 << 20;  // less is read before a thread has started

// The threads that so many bytes are worth: one for each kSmallBytes, at least one, and no more than are offered.
constexpr int threads_for(std::int64_t num_bytes, int num_threads) {
  return static_cast<int>(std::clamp<std::int64_t>(num_bytes / kSmallBytes, 1, std::max(num_threads, 1)));
}

}  // namespace modelassay
