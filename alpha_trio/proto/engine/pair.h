/* SHA-256 of two messages at once, where the processor has instructions for it.
 *
 * These instructions wait for one another: a processor that works on one message does
 * nothing half of the time.  The packets of a round have one length, so there is always
 * a second one.  FIPS 180-4, 6.2.2; Intel's "SHA Extensions" (2013) has the order in
 * which the instructions want the eight words of a state: ABEF and CDGH.
 */

#if defined(__x86_64__)
#include <cpuid.h>
#include <immintrin.h>

static const uint32_t ROUND_KEYS[64] __attribute__((aligned(16))) = {
    0x428a2f98, 0x71374491, 0xb5c0fbcf, 0xe9b5dba5, 0x3956c25b, 0x59f111f1, 0x923f82a4,
    0xab1c5ed5, 0xd807aa98, 0x12835b01, 0x243185be, 0x550c7dc3, 0x72be5d74, 0x80deb1fe,
    0x9bdc06a7, 0xc19bf174, 0xe49b69c1, 0xefbe4786, 0x0fc19dc6, 0x240ca1cc, 0x2de92c6f,
    0x4a7484aa, 0x5cb0a9dc, 0x76f988da, 0x983e5152, 0xa831c66d, 0xb00327c8, 0xbf597fc7,
    0xc6e00bf3, 0xd5a79147, 0x06ca6351, 0x14292967, 0x27b70a85, 0x2e1b2138, 0x4d2c6dfc,
    0x53380d13, 0x650a7354, 0x766a0abb, 0x81c2c92e, 0x92722c85, 0xa2bfe8a1, 0xa81a664b,
    0xc24b8b70, 0xc76c51a3, 0xd192e819, 0xd6990624, 0xf40e3585, 0x106aa070, 0x19a4c116,
    0x1e376c08, 0x2748774c, 0x34b0bcb5, 0x391c0cb3, 0x4ed8aa4a, 0x5b9cca4f, 0x682e6ff3,
    0x748f82ee, 0x78a5636f, 0x84c87814, 0x8cc70208, 0x90befffa, 0xa4506ceb, 0xbef9a3f7,
    0xc67178f2};

#define WITH_SHA __attribute__((target("sha,sse4.1,ssse3")))

/* One message: its state, and the sixteen words of its schedule that come next. */
typedef struct {
    __m128i abef, cdgh, words[4];
} Lane;

WITH_SHA static inline void load_state(Lane *lane, const uint32_t *state) {
    __m128i dcba = _mm_loadu_si128((const __m128i *)state);
    __m128i hgfe = _mm_loadu_si128((const __m128i *)(state + 4));
    __m128i cdab = _mm_shuffle_epi32(dcba, 0xB1), efgh = _mm_shuffle_epi32(hgfe, 0x1B);
    lane->abef = _mm_alignr_epi8(cdab, efgh, 8);
    lane->cdgh = _mm_blend_epi16(efgh, cdab, 0xF0);
}

WITH_SHA static inline void store_state(const Lane *lane, uint32_t *state) {
    __m128i feba = _mm_shuffle_epi32(lane->abef, 0x1B);
    __m128i dchg = _mm_shuffle_epi32(lane->cdgh, 0xB1);
    _mm_storeu_si128((__m128i *)state, _mm_blend_epi16(feba, dchg, 0xF0));
    _mm_storeu_si128((__m128i *)(state + 4), _mm_alignr_epi8(dchg, feba, 8));
}

WITH_SHA static inline void load_block(Lane *lane, const uint8_t *block) {
    const __m128i order = _mm_set_epi64x(0x0c0d0e0f08090a0b, 0x0405060700010203);
    for (int i = 0; i < 4; i++) {
        __m128i words = _mm_loadu_si128((const __m128i *)(block + 16 * i));
        lane->words[i] = _mm_shuffle_epi8(words, order);
    }
}

/* Four rounds, the ``step``-th such, and the four words of the schedule after it. */
WITH_SHA static inline void four_rounds(Lane *lane, int step) {
    __m128i *now = &lane->words[step & 3], *next = &lane->words[(step + 1) & 3];
    __m128i *third = &lane->words[(step + 2) & 3], *last = &lane->words[(step + 3) & 3];
    __m128i keys = _mm_load_si128((const __m128i *)(ROUND_KEYS + 4 * step));
    __m128i added = _mm_add_epi32(*now, keys);
    lane->cdgh = _mm_sha256rnds2_epu32(lane->cdgh, lane->abef, added);
    added = _mm_shuffle_epi32(added, 0x0E);
    lane->abef = _mm_sha256rnds2_epu32(lane->abef, lane->cdgh, added);
    if (step < 12) {
        __m128i between = _mm_alignr_epi8(*last, *third, 4);
        __m128i begun = _mm_add_epi32(_mm_sha256msg1_epu32(*now, *next), between);
        *now = _mm_sha256msg2_epu32(begun, *last);
    }
}

WITH_SHA static void compress_pair(uint32_t *one, uint32_t *two, const uint8_t *first,
                                   const uint8_t *second, size_t blocks) {
    Lane a, b;
    load_state(&a, one);
    load_state(&b, two);
    for (; blocks; blocks--, first += 64, second += 64) {
        __m128i a_abef = a.abef, a_cdgh = a.cdgh, b_abef = b.abef, b_cdgh = b.cdgh;
        load_block(&a, first);
        load_block(&b, second);
#pragma GCC unroll 16
        for (int step = 0; step < 16; step++) {
            four_rounds(&a, step);
            four_rounds(&b, step);
        }
        a.abef = _mm_add_epi32(a.abef, a_abef);
        a.cdgh = _mm_add_epi32(a.cdgh, a_cdgh);
        b.abef = _mm_add_epi32(b.abef, b_abef);
        b.cdgh = _mm_add_epi32(b.cdgh, b_cdgh);
    }
    store_state(&a, one);
    store_state(&b, two);
}

static int has_pairs(void) {
    unsigned eax, ebx, ecx, edx;
    if (!__get_cpuid(1, &eax, &ebx, &ecx, &edx) || !(ecx & bit_SSSE3) ||
        !(ecx & bit_SSE4_1))
        return 0;
    return __get_cpuid_count(7, 0, &eax, &ebx, &ecx, &edx) && (ebx & bit_SHA);
}

#else

static void compress_pair(uint32_t *one, uint32_t *two, const uint8_t *first,
                          const uint8_t *second, size_t blocks) {
    (void)one, (void)two, (void)first, (void)second, (void)blocks;
}

static int has_pairs(void) { return 0; }

#endif
