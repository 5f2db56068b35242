// Scratch memory of the loop. Buffers keep their memory between calls; a pool holds the workspaces that no call uses
// at the moment, so that a training step allocates nothing.

#pragma once

#include <cstdint>
#include <memory>
#include <mutex>
#include <utility>
#include <vector>

#include "product.h"

namespace {

// Uninitialised memory that is kept between calls.
template <typename T>
class Buffer {
public:
    // aligned to a cache line
    T* take(Int count) {
        constexpr size_t line = 64;
        if (count > size_) {
            data_.reset(new T[count + line / sizeof(T)]);
            size_ = count;
        }
        const auto at = reinterpret_cast<uintptr_t>(data_.get());
        return reinterpret_cast<T*>((at + line - 1) / line * line);
    }

private:
    std::unique_ptr<T[]> data_;
    Int size_ = 0;
};

template <typename T>
struct Workspace {
    std::vector<Buffer<T>> buffers;
    std::vector<Buffer<Int>> indices;
    Buffer<uint16_t> left, right;  // tiles
};

// The workspaces that no call uses at the moment. Each thread takes one of its own.
template <typename T>
struct Pool {
    std::mutex mutex;
    std::vector<std::unique_ptr<Workspace<T>>> idle;

    std::unique_ptr<Workspace<T>> take() {
        // a fork may have copied a locked mutex: then the pool is not used
        std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
        if (lock && !idle.empty()) {
            auto workspace = std::move(idle.back());
            idle.pop_back();
            return workspace;
        }
        return std::make_unique<Workspace<T>>();
    }
    void give(std::unique_ptr<Workspace<T>> workspace) {
        std::unique_lock<std::mutex> lock(mutex, std::try_to_lock);
        if (lock && idle.size() < 64) idle.push_back(std::move(workspace));
    }
};
template <typename T>
Pool<T>& pool() {
    static auto* instance = new Pool<T>;  // never destroyed: threads may outlive static objects
    return *instance;
}

}  // namespace
