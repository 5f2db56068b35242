// The time loop of a RIM layer and its derivative on the CPU (Goyal et al. 2021, sec. 2, arXiv:1909.10893): the
// functions that Python calls.
//
// Mechanisms couple only within a sample: every thread computes some samples for the whole loop and never waits.
// Where inactive mechanisms keep their state, a step computes only the active (mechanism, sample) pairs: it gathers
// them as rows sorted by mechanism, so that each weight is multiplied with all its rows in one product (product.h,
// amx.h). Keys and values of a mechanism are computed again only when its state has changed.
//
// All headers are parts of this one translation unit, in an unnamed namespace: the compiler sees every call, and two
// versions of the library in one process share nothing.

#include <algorithm>
#include <cstdint>
#include <exception>
#include <new>
#include <string>
#include <vector>

#include "amx.h"
#include "arguments.h"
#include "run.h"
#include "threads.h"
#include "workspace.h"

namespace {

thread_local std::string error;  // message of this thread's last failed call

// Returns 0, or 1 if `work` threw; rimlit_error then returns the message.
template <typename Work>
int guard(const Work& work) {
    try {
        work();
        return 0;
    } catch (const std::bad_alloc&) {
        error.clear();
    } catch (const std::exception& exception) {
        error = exception.what();
    } catch (...) {
        error = "an exception of an unknown type";
    }
    return 1;
}

int run_any(const Arguments& a, bool is_backward) {
    return guard([&] { a.is_double ? run<double>(a, is_backward) : run<float>(a, is_backward); });
}

}  // namespace

extern "C" {
int rimlit_forward(const Arguments* arguments) { return run_any(*arguments, false); }
int rimlit_backward(const Arguments* arguments) { return run_any(*arguments, true); }
int rimlit_step(const StepArguments* step, const void* input, const void* hidden, const void* memory, void* features,
                void* last_hidden, void* last_memory) {
    const OwnThread own_thread;
    Arguments loop = *step->loop;
    loop.hidden = hidden, loop.memory = memory;
    loop.features = features, loop.last_hidden = last_hidden, loop.last_memory = last_memory;
    return guard([&] {
        loop.is_double ? project<double>(*step, input) : project<float>(*step, input);
        loop.is_double ? run<double>(loop, false) : run<float>(loop, false);
    });
}
// The message of this thread's last failed call; empty if there was not enough memory.
const char* rimlit_error() { return error.c_str(); }
const char* rimlit_arguments_fields() { return Arguments_fields; }
Int rimlit_arguments_size() { return sizeof(Arguments); }
const char* rimlit_step_arguments_fields() { return StepArguments_fields; }
Int rimlit_step_arguments_size() { return sizeof(StepArguments); }
int rimlit_has_tiles() { return amx::is_available(); }
// out (rows, columns) = x (rows, inner) · y (inner, columns). x (its transpose, if it is turned) is stored as groups of
// rows; y is stored row by row (column by column, if it is turned). Returns 0, 1 if it failed, or 2 if tiles cannot
// hold the numbers.
int rimlit_multiply(const float* x, Int group_rows, Int group_stride, Int row_stride, Int is_x_turned, const float* y,
                    Int y_stride, Int is_y_turned, float* out, Int rows, Int inner, Int columns, Int threads) {
    std::vector<uint8_t> has_parts(threads, 1);
    const int failed = guard([&] {
        in_parallel(threads, [&](Int index) {
            const Int begin = rows * index / threads, end = rows * (index + 1) / threads;
            const auto left = [&](Int r) {
                if (!is_x_turned) r += begin;
                return x + r / group_rows * group_stride + r % group_rows * row_stride + (is_x_turned ? begin : 0);
            };
            const auto right = [&](Int r) { return y + r * y_stride; };
            auto workspace = pool<float>().take();
            has_parts[index] = amx::product(left, is_x_turned, right, is_y_turned, out + begin * columns, end - begin,
                                            inner, columns, workspace->left, workspace->right);
            pool<float>().give(std::move(workspace));
            amx::release();
        });
    });
    if (failed) return 1;
    return std::count(has_parts.begin(), has_parts.end(), 1) == threads ? 0 : 2;
}
}
