// Work on several threads: on those that torch keeps where that is possible; and the gradients of weights, to which all
// threads add: each has a copy, and these are summed at the end.

#pragma once

#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <exception>
#include <thread>
#include <vector>

#include "arguments.h"
#include "numbers.h"

extern "C" {
// present where torch includes MKL: limits the products of the calling thread to that thread
int MKL_Set_Num_Threads_Local(int) __attribute__((weak));
// present where torch includes OpenMP: runs a function on its threads
void GOMP_parallel(void (*)(void*), void*, unsigned, unsigned) __attribute__((weak));
}

namespace {

// While an object exists, MKL runs this thread's products on this thread alone.
class OwnThread {
public:
    OwnThread() : before_(MKL_Set_Num_Threads_Local ? MKL_Set_Num_Threads_Local(1) : 0) {}
    ~OwnThread() {
        if (MKL_Set_Num_Threads_Local) MKL_Set_Num_Threads_Local(before_);
    }
    OwnThread(const OwnThread&) = delete;

private:
    int before_;
};

// Set while the library is loaded, not at the first call, which may come after a fork.
const pid_t loader = getpid();

// Runs work(0) … work(threads - 1) on torch's threads: after use these wait in a busy loop, and additional threads
// would compete with them for the processors. A forked process lacks them and starts new threads.
template <typename Work>
void in_parallel(Int threads, const Work& work) {
    struct Task {
        const Work& work;
        const Int threads;
        std::vector<std::exception_ptr> failures;
        std::atomic<Int> next{0};

        void run() {
            for (Int index; (index = next++) < threads;) {
                try {
                    work(index);
                } catch (...) {
                    failures[index] = std::current_exception();
                }
            }
        }
        static void join(void* task) { static_cast<Task*>(task)->run(); }
    };
    Task task{work, threads, std::vector<std::exception_ptr>(threads)};
    if (threads == 1) {
        task.run();
    } else if (GOMP_parallel && getpid() == loader) {
        GOMP_parallel(Task::join, &task, static_cast<unsigned>(threads), 0);
    } else {
        std::vector<std::thread> helpers;
        try {
            for (Int i = 1; i < threads; ++i) helpers.emplace_back(Task::join, &task);
        } catch (...) {  // no more threads can be started: this one does their work too
        }
        task.run();
        for (auto& helper : helpers) helper.join();
    }
    for (const auto& failure : task.failures)
        if (failure) std::rethrow_exception(failure);
}

// A gradient that all threads add to. If `is_written`, it is overwritten first and need not start at zero.
struct Sum {
    void *Arguments::*into, *Arguments::*others;
    Int numbers;
    bool is_written;
};

std::vector<Sum> sums(const Arguments& a) {
    const Int M = a.mechanisms, d = a.size, I = a.input_heads, gates = (a.is_gru ? 3 : 4) * d;
    const Int R = a.heads * a.value, O = (a.output_kind == 2 ? 2 : 1) * d, P = a.heads * (2 * a.key + a.value);
    using A = Arguments;
    return {
        {&A::into_keys, &A::others_keys, a.tokens ? M * a.vocabulary * I * d : 0, false},
        {&A::into_values, &A::others_values, a.tokens ? M * a.vocabulary * I * gates : 0, false},
        {&A::into_input_query, &A::others_input_query, a.keys_hold_query ? 0 : M * d * I * a.input_key, true},
        {&A::into_cell_input, &A::others_cell_input, a.values_hold_cell ? 0 : M * I * a.input_value * gates, true},
        {&A::into_cell_hidden, &A::others_cell_hidden, M * d * gates, true},
        {&A::into_cell_bias, &A::others_cell_bias, M * 4 * d, false},
        {&A::into_communication, &A::others_communication, a.heads ? M * d * P : 0, true},
        {&A::into_communication_output, &A::others_communication_output, a.heads ? a.output_groups * R * O : 0, true},
        {&A::into_communication_bias, &A::others_communication_bias, a.heads && a.output_kind == 2 ? O : 0, false},
        {&A::into_score_bias, &A::others_score_bias, a.score_bias ? M : 0, false},
    };
}

// Returns the arguments of one thread, with its own sums; these start at zero unless later parts have begun them.
template <typename T>
Arguments own_arguments(const Arguments& a, const std::vector<Sum>& sums, Int index) {
    Arguments own = a;
    for (const Sum& sum : sums) {
        if (sum.numbers == 0) continue;
        if (index > 0) own.*sum.into = static_cast<T*>(a.*sum.others) + (index - 1) * sum.numbers;
        if (!sum.is_written && !a.later_are_done) std::fill_n(static_cast<T*>(own.*sum.into), sum.numbers, T(0));
    }
    return own;
}

// Adds up the sums of all threads after the last part; each thread adds its share of every sum.
template <typename T>
void add_up(const Arguments& a, const std::vector<Sum>& sums, Int index) {
    for (const Sum& sum : sums) {
        const Int begin = sum.numbers * index / a.threads, end = sum.numbers * (index + 1) / a.threads;
        for (Int other = 0; other + 1 < a.threads; ++other)
            add_scaled(static_cast<T*>(a.*sum.into) + begin,
                       static_cast<const T*>(a.*sum.others) + other * sum.numbers + begin, T(1), end - begin);
    }
}

}  // namespace
