// Working memory that a thread keeps between calls: fresh pages would cost a small call more than
// its arithmetic does.
#pragma once
#include <cstdint>
#include <cstdlib>
#if defined(__linux__)
#include <sys/mman.h>
#endif

struct Arena {
    // What is larger goes back to the system after the call.
    static constexpr int64_t KEPT = int64_t(64) << 20;

    static constexpr int64_t HUGE_PAGE = int64_t(2) << 20;

    char *base = nullptr;
    int64_t size = 0, used = 0;

    ~Arena() { std::free(base); }

    // Room for this many bytes from here on; false where the system has none.
    bool reserve(int64_t bytes) {
        used = 0;
        if (bytes <= size) return true;
        release();
        void *fresh = nullptr;
        if (posix_memalign(&fresh, bytes < HUGE_PAGE ? 64 : HUGE_PAGE, bytes)) return false;
#if defined(__linux__)
        if (bytes >= HUGE_PAGE) madvise(fresh, bytes, MADV_HUGEPAGE);
#endif
        base = static_cast<char *>(fresh);
        size = bytes;
        return true;
    }

    void trim() {
        if (size > KEPT) release();
    }

    void release() {
        std::free(base);
        base = nullptr;
        size = 0;
    }

    static int64_t rounded(int64_t bytes) { return (bytes + 63) / 64 * 64; }

    template <class T> T *take(int64_t count) {
        T *place = reinterpret_cast<T *>(base + used);
        used += rounded(count * int64_t(sizeof(T)));
        return place;
    }
};
