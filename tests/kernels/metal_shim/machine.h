// Runs a kernel's threads on a CPU, each on a stack of its own.
//
// A threadgroup's threads take turns between barriers, in an order that is shuffled anew after each barrier, so that a missing barrier shows.
// Threadgroup memory is filled with 0xff (NaN in every type) before each threadgroup. A barrier that only some threads of a group reach,
// threads that wait at different barriers, and simdgroup operations that not all 32 lanes carry out end the program with a message.
#pragma once
#include "numbers.h"
#include <cstdio>
#include <cstdlib>
#include <ucontext.h>
#include <vector>

#define SHIM_UNCHECKED __attribute__((no_sanitize("address", "undefined")))

extern char __start_threadgroup_memory[] __attribute__((weak));
extern char __stop_threadgroup_memory[] __attribute__((weak));

namespace shim {

struct Lane {
    uint3 thread_position_in_grid;
    uint3 threadgroup_position_in_grid;
    uint3 thread_position_in_threadgroup;
    uint thread_index_in_threadgroup;
    uint simdgroup_index_in_threadgroup;
    uint thread_index_in_simdgroup;
    int barrier; // line of the barrier it waits at, 0 before its first turn, -1 when it has ended
    long collective; // simdgroup operations so far
    ucontext_t context;
};

typedef void (*Kernel)(void** arguments, const Lane& lane);

struct Group {
    Kernel kernel;
    void** arguments;
    std::vector<Lane> lanes;
    Lane* now;
    ucontext_t scheduler;
    unsigned long shuffle;
};

inline Group group;

[[noreturn]] inline void fail(const char* what, int first, int second)
{
    std::fprintf(stderr, "metal shim: ");
    std::fprintf(stderr, what, first, second);
    std::fprintf(stderr, "\n");
    std::exit(70);
}

template <typename T> T position(const uint3& all);
template <> inline uint position<uint>(const uint3& all) { return all.x; }
template <> inline uint2 position<uint2>(const uint3& all) { return {all.x, all.y}; }
template <> inline uint3 position<uint3>(const uint3& all) { return all; }

inline void wait(int line)
{
    group.now->barrier = line;
    swapcontext(&group.now->context, &group.scheduler);
}

// Whether this lane does the simdgroup's work: one lane does all of it.
inline bool collective()
{
    ++group.now->collective;
    return group.now->thread_index_in_simdgroup == 0;
}

inline void enter()
{
    group.kernel(group.arguments, *group.now);
    group.now->barrier = -1;
}

SHIM_UNCHECKED inline void forget_threadgroup_memory()
{
    for (volatile char* at = __start_threadgroup_memory; at < __stop_threadgroup_memory; ++at) {
        *at = char(0xff);
    }
}

inline unsigned next_random(unsigned below)
{
    group.shuffle = group.shuffle * 6364136223846793005ul + 1442695040888963407ul;
    return unsigned((group.shuffle >> 33) % below);
}

// Every thread from one barrier to the next. Returns whether there is more to do.
inline bool turn(std::vector<uint>& order)
{
    for (uint i = uint(order.size()); i > 1; --i) {
        std::swap(order[i - 1], order[next_random(i)]);
    }
    for (uint which : order) {
        group.now = &group.lanes[which];
        swapcontext(&group.scheduler, &group.now->context);
    }
    const Lane& first = group.lanes[0];
    for (const Lane& lane : group.lanes) {
        if (lane.barrier != first.barrier) {
            fail("threads of one threadgroup are at different barriers (lines %d and %d; -1 is the end)", first.barrier, lane.barrier);
        }
        const Lane& leader = group.lanes[lane.simdgroup_index_in_threadgroup * 32];
        if (lane.collective != leader.collective) {
            fail("lanes of one simdgroup carried out %d and %d simdgroup operations", int(leader.collective), int(lane.collective));
        }
    }
    if (first.collective && group.lanes.size() % 32) {
        fail("simdgroup operations need whole simdgroups of 32, not %d threads%.0d", int(group.lanes.size()), 0);
    }
    return first.barrier != -1;
}

inline void run_group(const uint3& place, const uint3& threads, const uint3& shape, std::vector<char*>& stacks)
{
    const uint bytes = 1u << 16;
    // The last groups of a grid are cut off: dispatchThreads has no thread outside the grid.
    const uint3 size = {
        std::min(shape.x, threads.x - place.x * shape.x),
        std::min(shape.y, threads.y - place.y * shape.y),
        std::min(shape.z, threads.z - place.z * shape.z)};
    const uint count = size.x * size.y * size.z;
    group.lanes.assign(count, Lane());
    std::vector<uint> order(count);
    for (uint i = 0; i < count; ++i) {
        Lane& lane = group.lanes[i];
        const uint3 within = {i % size.x, i / size.x % size.y, i / size.x / size.y};
        lane.thread_position_in_threadgroup = within;
        lane.threadgroup_position_in_grid = place;
        lane.thread_position_in_grid = {place.x * shape.x + within.x, place.y * shape.y + within.y, place.z * shape.z + within.z};
        lane.thread_index_in_threadgroup = i;
        lane.simdgroup_index_in_threadgroup = i / 32;
        lane.thread_index_in_simdgroup = i % 32;
        order[i] = i;
        while (stacks.size() <= i) {
            stacks.push_back(static_cast<char*>(std::malloc(bytes)));
        }
        getcontext(&lane.context);
        lane.context.uc_stack.ss_sp = stacks[i];
        lane.context.uc_stack.ss_size = bytes;
        lane.context.uc_link = &group.scheduler;
        makecontext(&lane.context, enter, 0);
    }
    forget_threadgroup_memory();
    while (turn(order)) {
    }
}

inline void run_grid(Kernel kernel, void** arguments, const uint3& threads, const uint3& shape)
{
    static std::vector<char*> stacks;
    if (shape.x * shape.y * shape.z > 1024) {
        fail("a threadgroup has at most 1024 threads, not %d%.0d", int(shape.x * shape.y * shape.z), 0);
    }
    group.kernel = kernel;
    group.arguments = arguments;
    for (uint z = 0; z * shape.z < threads.z; ++z) {
        for (uint y = 0; y * shape.y < threads.y; ++y) {
            for (uint x = 0; x * shape.x < threads.x; ++x) {
                run_group({x, y, z}, threads, shape, stacks);
            }
        }
    }
}

} // namespace shim
