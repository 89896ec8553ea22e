// Working memory that a thread keeps between calls: for a small call, new pages would take longer
// than the arithmetic.
#pragma once
#include <cstdint>
#include <cstdlib>
#if defined(__linux__)
#include <sys/mman.h>
#endif

// Under the address sanitizer, a gap between pieces detects reads past the end of one.
#if defined(__SANITIZE_ADDRESS__)
#include <sanitizer/asan_interface.h>
#define SIGMOID_ATTENTION_GAP 64
#endif

struct Arena {
    // Larger arenas are returned to the system after the call.
    static constexpr int64_t KEPT = int64_t(64) << 20;

    static constexpr int64_t HUGE_PAGE = int64_t(2) << 20;

    char *base = nullptr;
    int64_t size = 0, used = 0;

    ~Arena() { release(); }

    // Makes this many bytes available; false if the system has too little memory.
    bool reserve(int64_t bytes) {
        rewind();
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
        rewind();
        std::free(base);
        base = nullptr;
        size = 0;
    }

    static int64_t rounded(int64_t bytes) {
#if defined(SIGMOID_ATTENTION_GAP)
        bytes += SIGMOID_ATTENTION_GAP;
#endif
        return (bytes + 63) / 64 * 64;
    }

    template <class T> T *take(int64_t count) {
        T *piece = reinterpret_cast<T *>(base + used);
        used += rounded(count * int64_t(sizeof(T)));
#if defined(SIGMOID_ATTENTION_GAP)
        ASAN_POISON_MEMORY_REGION(base + used - SIGMOID_ATTENTION_GAP, SIGMOID_ATTENTION_GAP);
#endif
        return piece;
    }

    // Makes all pieces available again.
    void rewind() {
        used = 0;
#if defined(SIGMOID_ATTENTION_GAP)
        ASAN_UNPOISON_MEMORY_REGION(base, size);
#endif
    }
};
