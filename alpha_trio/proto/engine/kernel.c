/* What is done once for each packet, with one call for a whole round or run.
 *
 * reference.py does the same in Python, and says more about why; whatever this does,
 * that does too, byte for byte, and tests/proto/engine compares the two.
 *
 * One datagram (S2) of a round, as it lies in a round's buffer and on the wire:
 *
 *     +------------+--------------+---------+--------+--------+------------+---------+
 *     | round head | branch       | index   | zero   | offset | frame word | headers,|
 *     |            | 16 x depth   |         |        |        |            | segment |
 *     +------------+--------------+---------+--------+--------+------------+---------+
 *       HEAD 32                     2         2        4        WORD 8
 *                                 |<----- TAIL 8 ----------->|<---- encrypted ------>|
 *                                 |<------------- pre-signed: the packet ----------->|
 *
 * All numbers are big-endian.  "offset" is where the frame word lies in the round's
 * buffer, and so in its keystream, from which TAIL is subtracted: it names the packet.
 *
 * Rules kept here:
 *   - Every pointer into a buffer is made from an offset that was compared with the
 *     buffer's length just before; no length that came from the network is used as one
 *     before it is checked.
 *   - No Python object is touched while the interpreter lock is released, and every
 *     buffer is held meanwhile by a reference or a Py_buffer.
 *   - Nothing here compares a secret: keys are given, and pre-signatures, roots and
 *     disclosed keys are public.
 */

#define PY_SSIZE_T_CLEAN
#define Py_LIMITED_API 0x030B0000
#define OPENSSL_SUPPRESS_DEPRECATED /* SHA256_*: states copied by assignment */
#include <Python.h>
#include <openssl/crypto.h>
#include <openssl/evp.h>
#include <openssl/sha.h>
#include <stdint.h>
#include <string.h>

#include "pair.h"

enum {
    HEAD = 32, TAIL = 8, WORD = 8, NODE = 16, BLOCK = 64, KEY = 32, AES_BLOCK = 16,
    MAX_DEPTH = 7, /* one more than rounds have */
    MAX_PACKETS = 1 << 16, PLACE = 8
};
#define LARGEST ((Py_ssize_t)1 << 30) /* bytes of anything given to us */

enum { FORGED, PROMISED, FOLLOWS }; /* verdicts on packets */

static const char CIPHER[] = "alpha_trio.cipher";

static int by_pairs; /* whether two packets are hashed at once */

static void put16(uint8_t *at, unsigned value) {
    at[0] = (uint8_t)(value >> 8);
    at[1] = (uint8_t)value;
}

static void put32(uint8_t *at, uint32_t value) {
    put16(at, value >> 16);
    put16(at + 2, value & 0xFFFF);
}

static void put64(uint8_t *at, uint64_t value) {
    put32(at, (uint32_t)(value >> 32));
    put32(at + 4, (uint32_t)value);
}

static unsigned get16(const uint8_t *at) { return (unsigned)at[0] << 8 | at[1]; }

static uint32_t get32(const uint8_t *at) {
    return (uint32_t)get16(at) << 16 | get16(at + 2);
}

static uint64_t get64(const uint8_t *at) {
    uint64_t value = 0;
    for (int i = 0; i < 8; i++)
        value = value << 8 | at[i];
    return value;
}

/* -- arguments --------------------------------------------------------------------- */

/* Each reads or compares something of a call's, and gives 0 with an exception set if it
 * is not what it has to be. */

static int has_size(Py_ssize_t size, Py_ssize_t wanted) {
    if (size != wanted)
        PyErr_SetString(PyExc_ValueError, "a part has not the size it must have");
    return size == wanted;
}

static int has_count(Py_ssize_t count, Py_ssize_t wanted) {
    if (count != wanted)
        PyErr_SetString(PyExc_TypeError, "these are too few arguments, or too many");
    return count == wanted;
}

static int take_bytes(PyObject *given, const uint8_t **bytes, Py_ssize_t *size) {
    char *text = NULL;
    int taken = PyBytes_AsStringAndSize(given, &text, size) == 0;
    *bytes = (uint8_t *)text;
    return taken;
}

static int take_part(PyObject *given, const uint8_t **bytes, Py_ssize_t wanted) {
    Py_ssize_t size;
    return take_bytes(given, bytes, &size) && has_size(size, wanted);
}

static int take_number(PyObject *given, size_t least, size_t most, size_t *number) {
    Py_ssize_t value = PyLong_AsSsize_t(given);
    if (value == -1 && PyErr_Occurred())
        return 0;
    *number = (size_t)value; /* more than any that may be, if it is negative */
    return has_size(least <= *number && *number <= most, 1);
}

/* -- hashes ------------------------------------------------------------------------ */

/* The state after one block: what all hashes of a round begin with. */
static SHA256_CTX started(const uint8_t *block) {
    SHA256_CTX state;
    SHA256_Init(&state);
    SHA256_Update(&state, block, BLOCK);
    return state;
}

static void finish(SHA256_CTX *state, uint8_t *node) {
    uint8_t digest[SHA256_DIGEST_LENGTH];
    SHA256_Final(digest, state);
    memcpy(node, digest, NODE);
}

static void put_node(const uint32_t *words, uint8_t *node) {
    for (int i = 0; i < NODE / 4; i++)
        put32(node + 4 * i, words[i]);
}

static void hash_packet(const SHA256_CTX *start, const uint8_t *packet, size_t size,
                        uint8_t *node) {
    SHA256_CTX state = *start;
    SHA256_Update(&state, packet, size);
    finish(&state, node);
}

/* What follows a message of ``size`` bytes: its rest, its end, and its length in bits
 * (FIPS 180-4, 5.1.1).  How many blocks that makes. */
static size_t put_end(const uint8_t *rest, size_t left, uint64_t size, uint8_t *end) {
    size_t blocks = left + 1 + 8 > BLOCK ? 2 : 1;
    memset(end, 0, blocks * BLOCK);
    memcpy(end, rest, left);
    end[left] = 0x80;
    put64(end + blocks * BLOCK - 8, 8 * size);
    return blocks;
}

/* The same of two packets of one size. */
static void hash_two(const SHA256_CTX *start, const uint8_t *first,
                     const uint8_t *second, size_t size, uint8_t *nodes) {
    uint32_t one[8], two[8];
    uint8_t end_of_one[2 * BLOCK], end_of_two[2 * BLOCK];
    size_t blocks = size / BLOCK, whole = blocks * BLOCK, left = size - whole;
    memcpy(one, start->h, sizeof one);
    memcpy(two, start->h, sizeof two);
    compress_pair(one, two, first, second, blocks);
    blocks = put_end(first + whole, left, BLOCK + size, end_of_one);
    put_end(second + whole, left, BLOCK + size, end_of_two);
    compress_pair(one, two, end_of_one, end_of_two, blocks);
    put_node(one, nodes);
    put_node(two, nodes + NODE);
}

/* The hashes of packets ``stride`` apart; all but the last have ``size`` bytes. */
static void hash_run(const SHA256_CTX *start, const uint8_t *packet, size_t stride,
                     size_t size, size_t last, size_t count, uint8_t *nodes) {
    size_t at = 0, alike = last == size ? count : count - 1;
    if (by_pairs)
        for (; at + 2 <= alike; at += 2)
            hash_two(start, packet + at * stride, packet + (at + 1) * stride, size,
                     nodes + at * NODE);
    for (; at < count; at++)
        hash_packet(start, packet + at * stride, at + 1 < count ? size : last,
                    nodes + at * NODE);
}

/* The hash of a message of at most 55 bytes, which has one block with its end. */
static void hash_short(const uint8_t *message, size_t size, uint8_t *node) {
    SHA256_CTX state;
    uint8_t block[2 * BLOCK];
    put_end(message, size, size, block);
    SHA256_Init(&state);
    SHA256_Transform(&state, block);
    put_node(state.h, node);
}

static void hash_node(const uint8_t *left, const uint8_t *right, uint8_t *node) {
    uint8_t message[1 + 2 * NODE] = "n";
    memcpy(message + 1, left, NODE);
    memcpy(message + 1 + NODE, right, NODE);
    hash_short(message, sizeof message, node);
}

static void hash_root(const SHA256_CTX *keyed, const uint8_t *left,
                      const uint8_t *right, uint8_t *node) {
    SHA256_CTX state = *keyed;
    SHA256_Update(&state, left, NODE);
    SHA256_Update(&state, right, NODE);
    finish(&state, node);
}

/* -- chains ------------------------------------------------------------------------ */

/* descend(chain id, position, element, count)
 * -> the ``count`` elements before this one, the nearest first */
static PyObject *descend(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    const uint8_t *name, *element;
    size_t position, count;
    if (!has_count(given, 4) || !take_part(args[0], &name, NODE) ||
        !take_number(args[1], 0, UINT32_MAX, &position) ||
        !take_part(args[2], &element, NODE) ||
        !take_number(args[3], 0, position, &count))
        return NULL;
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(count * NODE));
    if (result == NULL)
        return NULL;
    uint8_t *to = (uint8_t *)PyBytes_AsString(result), message[1 + NODE + 4 + NODE];
    Py_BEGIN_ALLOW_THREADS
    memcpy(message + 1, name, NODE);
    for (size_t i = 0; i < count; i++) {
        uint32_t at = (uint32_t)(position - 1 - i);
        message[0] = at & 1 ? 'o' : 'k'; /* opens a round, or is its key */
        put32(message + 1 + NODE, at);
        memcpy(message + 1 + NODE + 4, i ? to + (i - 1) * NODE : element, NODE);
        hash_short(message, sizeof message, to + i * NODE);
    }
    Py_END_ALLOW_THREADS
    return result;
}

/* -- keystream --------------------------------------------------------------------- */

static void free_cipher(PyObject *capsule) {
    EVP_CIPHER_CTX_free(PyCapsule_GetPointer(capsule, CIPHER));
}

/* cipher(key) -> what seal and open want */
static PyObject *make_cipher(PyObject *module, PyObject *key) {
    char *bytes;
    Py_ssize_t size;
    if (PyBytes_AsStringAndSize(key, &bytes, &size) < 0)
        return NULL;
    if (size != KEY) {
        PyErr_SetString(PyExc_ValueError, "a key has 32 bytes");
        return NULL;
    }
    EVP_CIPHER_CTX *context = EVP_CIPHER_CTX_new();
    if (context == NULL ||
        EVP_EncryptInit_ex(context, EVP_aes_256_ctr(), NULL, (uint8_t *)bytes, NULL) !=
            1) {
        EVP_CIPHER_CTX_free(context);
        PyErr_SetString(PyExc_RuntimeError, "libcrypto has no AES-256-CTR");
        return NULL;
    }
    PyObject *capsule = PyCapsule_New(context, CIPHER, free_cipher);
    if (capsule == NULL)
        EVP_CIPHER_CTX_free(context);
    return capsule;
}

/* Keystream of a place from byte ``offset`` on; 0 if libcrypto will not. */
static int apply(EVP_CIPHER_CTX *context, const uint8_t *place, uint64_t offset,
                 const uint8_t *text, uint8_t *result, size_t size) {
    uint8_t counter[AES_BLOCK], skipped[AES_BLOCK] = {0};
    int done;
    memcpy(counter, place, PLACE);
    put64(counter + PLACE, offset / AES_BLOCK);
    if (EVP_EncryptInit_ex(context, NULL, NULL, NULL, counter) != 1)
        return 0;
    if (offset % AES_BLOCK &&
        EVP_EncryptUpdate(context, skipped, &done, skipped,
                          (int)(offset % AES_BLOCK)) != 1)
        return 0;
    return size == 0 || EVP_EncryptUpdate(context, result, &done, text, (int)size) == 1;
}

/* -- sealing a round --------------------------------------------------------------- */

/* Packets that were one frame: headers, if any, before each segment of the payload. */
typedef struct {
    uint64_t word;
    const uint8_t *headers, *payload;
    size_t head_size, payload_size, segment_size, count;
    long traffic_class;
} Frame;

/* Datagrams of one size but for the last, which are sent together. */
typedef struct {
    size_t first, until, begin, end, stride;
    long traffic_class;
} Span;

/* A tuple (word, headers, bytes with the payload, where in these it begins and ends,
 * segment size, traffic class), which stays alive. */
static int read_frame(PyObject *given, Frame *frame) {
    char *headers, *payload;
    Py_ssize_t head_size, payload_size;
    if (PyTuple_Size(given) != 7) {
        if (!PyErr_Occurred())
            PyErr_SetString(PyExc_ValueError, "a frame has seven parts");
        return 0;
    }
    frame->word = PyLong_AsUnsignedLongLong(PyTuple_GetItem(given, 0));
    size_t begin = PyLong_AsSize_t(PyTuple_GetItem(given, 3));
    size_t end = PyLong_AsSize_t(PyTuple_GetItem(given, 4));
    size_t segment_size = PyLong_AsSize_t(PyTuple_GetItem(given, 5));
    frame->traffic_class = PyLong_AsLong(PyTuple_GetItem(given, 6));
    if (PyErr_Occurred() ||
        PyBytes_AsStringAndSize(PyTuple_GetItem(given, 1), &headers, &head_size) < 0 ||
        PyBytes_AsStringAndSize(PyTuple_GetItem(given, 2), &payload, &payload_size) < 0)
        return 0;
    if (begin > end || end > (size_t)payload_size) {
        PyErr_SetString(PyExc_ValueError, "a payload is not where it is said to be");
        return 0;
    }
    frame->headers = (uint8_t *)headers;
    frame->payload = (uint8_t *)payload + begin;
    frame->head_size = (size_t)head_size;
    frame->payload_size = end - begin;
    frame->segment_size = segment_size < frame->payload_size ? segment_size
                                                             : frame->payload_size;
    if (frame->payload_size > 0 && frame->segment_size == 0) {
        PyErr_SetString(PyExc_ValueError, "segments have at least one byte");
        return 0;
    }
    frame->count = frame->payload_size == 0
                       ? 1
                       : (frame->payload_size - 1) / frame->segment_size + 1;
    return 1;
}

/* Place the frames' datagrams one after the other; how many groups that makes. */
static size_t plan(const Frame *frames, size_t count, size_t fixed, Span *spans) {
    size_t made = 0, begin = 0, index = 0;
    for (size_t i = 0; i < count; i++) {
        const Frame *frame = &frames[i];
        size_t around = fixed + TAIL + WORD + frame->head_size;
        Span span = {index, index + frame->count, begin,
                     begin + frame->count * around + frame->payload_size,
                     around + frame->segment_size, frame->traffic_class};
        begin = span.end;
        index = span.until;
        /* A super-packet stays apart, so that it arrives in one piece. */
        Span *last = made && frame->head_size == 0 ? &spans[made - 1] : NULL;
        if (last != NULL && last->stride == span.stride &&
            last->traffic_class == span.traffic_class && !frames[i - 1].head_size &&
            last->end - last->begin == (last->until - last->first) * last->stride) {
            last->until = span.until;
            last->end = span.end;
        } else {
            spans[made++] = span;
        }
    }
    return made;
}

static void lay_out(const Frame *frames, size_t count, size_t fixed, uint8_t *at) {
    for (size_t i = 0; i < count; i++) {
        const Frame *frame = &frames[i];
        size_t left = frame->payload_size;
        const uint8_t *payload = frame->payload;
        for (size_t n = 0; n < frame->count; n++) {
            size_t size = left < frame->segment_size ? left : frame->segment_size;
            memset(at, 0, fixed + TAIL);
            at += fixed + TAIL;
            put64(at, frame->word + (frame->head_size ? n : 0));
            memcpy(at + WORD, frame->headers, frame->head_size);
            at += WORD + frame->head_size;
            memcpy(at, payload, size);
            at += size;
            payload += size;
            left -= size;
        }
    }
}

/* What a round is sealed with. */
typedef struct {
    EVP_CIPHER_CTX *context;
    const uint8_t *place, *head, *leaf_block, *key_block;
    unsigned depth;
} Sealing;

/* Heads into every datagram, and the hash of its packet into ``leaves``. */
static void sign_packets(const Sealing *with, const Span *spans, size_t groups,
                         uint8_t *buffer, uint8_t *leaves) {
    SHA256_CTX start = started(with->depth ? with->leaf_block : with->key_block);
    size_t fixed = HEAD + (size_t)with->depth * NODE;
    for (size_t g = 0; g < groups; g++) {
        size_t index = spans[g].first;
        for (size_t at = spans[g].begin; at < spans[g].end; at += spans[g].stride) {
            memcpy(buffer + at, with->head, HEAD);
            put16(buffer + at + fixed, (unsigned)index++);
            put16(buffer + at + fixed + 2, 0);
            put32(buffer + at + fixed + 4, (uint32_t)(at + fixed));
        }
        size_t count = spans[g].until - spans[g].first, stride = spans[g].stride;
        size_t last = spans[g].end - spans[g].begin - (count - 1) * stride;
        hash_run(&start, buffer + spans[g].begin + fixed, stride, stride - fixed,
                 last - fixed, count, leaves + spans[g].first * NODE);
    }
}

/* Trees over the leaves, which are whole blocks; level after level behind them. */
static void grow_trees(const Sealing *with, uint8_t *leaves, size_t count,
                       uint8_t *roots) {
    SHA256_CTX keyed = started(with->key_block);
    uint8_t *level = leaves;
    for (unsigned height = 1; height < with->depth; height++) {
        uint8_t *above = level + count * NODE;
        count /= 2;
        for (size_t i = 0; i < count; i++)
            hash_node(level + 2 * i * NODE, level + (2 * i + 1) * NODE,
                      above + i * NODE);
        level = above;
    }
    for (size_t i = 0; i < count / 2; i++)
        hash_root(&keyed, level + 2 * i * NODE, level + (2 * i + 1) * NODE,
                  roots + i * NODE);
}

static void put_branches(const Sealing *with, const Span *spans, size_t groups,
                         uint8_t *buffer, const uint8_t *leaves, size_t count) {
    for (size_t g = 0; g < groups; g++) {
        size_t index = spans[g].first;
        for (size_t at = spans[g].begin; at < spans[g].end; at += spans[g].stride) {
            const uint8_t *level = leaves;
            size_t wide = count;
            for (unsigned height = 0; height < with->depth; height++) {
                memcpy(buffer + at + HEAD + height * NODE,
                       level + (index >> height ^ 1) * NODE, NODE);
                level += wide * NODE;
                wide /= 2;
            }
            index++;
        }
    }
}

static PyObject *list_of_spans(const Span *spans, size_t groups) {
    PyObject *list = PyList_New((Py_ssize_t)groups);
    for (size_t g = 0; list != NULL && g < groups; g++) {
        PyObject *span =
            Py_BuildValue("(nnnnnl)", (Py_ssize_t)spans[g].first,
                          (Py_ssize_t)spans[g].until, (Py_ssize_t)spans[g].begin,
                          (Py_ssize_t)spans[g].end, (Py_ssize_t)spans[g].stride,
                          spans[g].traffic_class);
        if (span == NULL || PyList_SetItem(list, (Py_ssize_t)g, span) < 0)
            Py_CLEAR(list);
    }
    return list;
}

/* Everything once the frames are known and memory is there. */
static PyObject *seal_frames(const Sealing *with, const Frame *frames, size_t count,
                             Span *spans) {
    size_t fixed = HEAD + (size_t)with->depth * NODE;
    size_t groups = plan(frames, count, fixed, spans);
    size_t size = spans[groups - 1].end, packets = spans[groups - 1].until;
    size_t block = (size_t)1 << with->depth;
    size_t blocks = (packets + block - 1) / block, padded = blocks * block;
    if (packets > MAX_PACKETS || size > (size_t)LARGEST) {
        PyErr_SetString(PyExc_ValueError, "more than a round holds");
        return NULL;
    }
    PyObject *buffer = PyByteArray_FromStringAndSize(NULL, (Py_ssize_t)size);
    PyObject *roots = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)(blocks * NODE));
    /* All levels of all trees but the roots: less than twice the leaves. */
    uint8_t *leaves = PyMem_Malloc(2 * padded * NODE);
    PyObject *result = NULL;
    int sealed = 0;
    if (buffer == NULL || roots == NULL || leaves == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    uint8_t *at = (uint8_t *)PyByteArray_AsString(buffer);
    uint8_t *tops = (uint8_t *)PyBytes_AsString(roots);
    Py_BEGIN_ALLOW_THREADS
    lay_out(frames, count, fixed, at);
    sealed = apply(with->context, with->place, 0, at, at, size);
    if (sealed) {
        memset(leaves + packets * NODE, 0, (padded - packets) * NODE);
        sign_packets(with, spans, groups, at, leaves);
        if (with->depth) {
            grow_trees(with, leaves, padded, tops);
            put_branches(with, spans, groups, at, leaves, padded);
        } else {
            memcpy(tops, leaves, packets * NODE);
        }
    }
    Py_END_ALLOW_THREADS
    if (sealed) {
        PyObject *list = list_of_spans(spans, groups);
        if (list != NULL)
            result = Py_BuildValue("(ONO)", buffer, list, roots);
    } else {
        PyErr_SetString(PyExc_RuntimeError, "libcrypto does not encrypt");
    }
done:
    PyMem_Free(leaves);
    Py_XDECREF(roots);
    Py_XDECREF(buffer);
    return result;
}

/* seal(cipher, place, head, leaf block, key block, depth, frames)
 * -> (buffer, [(first, until, begin, end, stride, traffic class)], roots) */
static PyObject *seal(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    Sealing with;
    size_t depth;
    if (!has_count(given, 7) || !take_part(args[1], &with.place, PLACE) ||
        !take_part(args[2], &with.head, HEAD) ||
        !take_part(args[3], &with.leaf_block, BLOCK) ||
        !take_part(args[4], &with.key_block, BLOCK) ||
        !take_number(args[5], 0, MAX_DEPTH, &depth))
        return NULL;
    with.depth = (unsigned)depth;
    with.context = PyCapsule_GetPointer(args[0], CIPHER);
    PyObject *held = with.context ? PySequence_Tuple(args[6]) : NULL;
    if (held == NULL)
        return NULL;
    Py_ssize_t count = PyTuple_Size(held);
    Frame *frames = PyMem_Calloc((size_t)count + 1, sizeof(Frame));
    Span *spans = PyMem_Calloc((size_t)count + 1, sizeof(Span));
    PyObject *result = NULL;
    int good = frames != NULL && spans != NULL;
    if (!good)
        PyErr_NoMemory();
    for (Py_ssize_t i = 0; good && i < count; i++)
        good = read_frame(PyTuple_GetItem(held, i), &frames[i]);
    if (good && has_size(count == 0, 0))
        result = seal_frames(&with, frames, (size_t)count, spans);
    PyMem_Free(spans);
    PyMem_Free(frames);
    Py_DECREF(held);
    return result;
}

/* -- checking a run ---------------------------------------------------------------- */

/* What an S1 promised, and the key of its round. */
typedef struct {
    const uint8_t *prefix, *roots;
    size_t root_count, packets, least;
    unsigned depth;
    SHA256_CTX start, keyed;
} Promise;

/* The way of one packet up its tree; what is known of it saves the next one's hashes. */
typedef struct {
    size_t index;
    int known;
    uint8_t nodes[MAX_DEPTH][NODE], siblings[MAX_DEPTH][NODE];
} Path;

/* Whether ``branch`` leads from a leaf to its root.
 *
 * Two paths of one tree meet: the node below is then the sibling of the other's node,
 * and above both have the same nodes and siblings, which are compared, not hashed. */
static int climbs(const Promise *to, Path *path, size_t index, const uint8_t *leaf,
                  const uint8_t *branch) {
    uint8_t nodes[MAX_DEPTH][NODE], root[NODE];
    size_t apart = path->known ? index ^ path->index : (size_t)1 << MAX_DEPTH;
    memcpy(nodes[0], leaf, NODE);
    if (apart == 0)
        return memcmp(nodes[0], path->nodes[0], NODE) == 0 &&
               memcmp(branch, path->siblings, to->depth * NODE) == 0;
    for (unsigned height = 0; height < to->depth; height++) {
        const uint8_t *sibling = branch + height * NODE;
        if (apart >> height == 1) { /* they meet above this height */
            unsigned above = height + 1;
            if (memcmp(nodes[height], path->siblings[height], NODE) != 0 ||
                memcmp(sibling, path->nodes[height], NODE) != 0 ||
                memcmp(branch + above * NODE, path->siblings[above],
                       (to->depth - above) * NODE) != 0)
                return 0;
            memcpy(nodes[above], path->nodes[above], (to->depth - above) * NODE);
            break;
        }
        int right = index >> height & 1;
        const uint8_t *first = right ? sibling : nodes[height];
        const uint8_t *second = right ? nodes[height] : sibling;
        if (height + 1 < to->depth) {
            hash_node(first, second, nodes[height + 1]);
        } else {
            hash_root(&to->keyed, first, second, root);
            if (memcmp(root, to->roots + (index >> to->depth) * NODE, NODE) != 0)
                return 0;
        }
    }
    path->known = 1;
    path->index = index;
    memcpy(path->nodes, nodes, sizeof nodes);
    memcpy(path->siblings, branch, to->depth * NODE);
    return 1;
}

static int is_promised(const Promise *to, Path *path, size_t index,
                       const uint8_t *datagram, const uint8_t *node) {
    if (index >= to->packets || index >> to->depth >= to->root_count)
        return 0;
    if (to->depth)
        return climbs(to, path, index, node, datagram + HEAD);
    return memcmp(node, to->roots + index * NODE, NODE) == 0;
}

/* How many datagrams begin with the prefix and are long enough. */
static size_t run_length(const Promise *to, const uint8_t *view, size_t size,
                         size_t stride) {
    size_t shortest = HEAD + (size_t)to->depth * NODE + to->least, count = 0;
    for (size_t at = 0; at < size; at += stride, count++) {
        size_t length = size - at < stride ? size - at : stride;
        if (length < shortest || memcmp(view + at, to->prefix, HEAD) != 0)
            break;
    }
    return count;
}

/* Judge the ``count`` datagrams of a run; ``nodes`` has room for a hash of each.
 *
 * A promised packet that is the next one after that before it, in the round and in its
 * keystream, is FOLLOWS. */
static void judge(const Promise *to, const uint8_t *view, size_t size, size_t stride,
                  size_t count, uint8_t *nodes, char *verdicts) {
    size_t fixed = HEAD + (size_t)to->depth * NODE, index = 0;
    size_t last = size < count * stride ? size - (count - 1) * stride : stride;
    uint32_t offset = 0;
    Path path;
    memset(&path, 0, sizeof path);
    hash_run(&to->start, view + fixed, stride, stride - fixed, last - fixed, count,
             nodes);
    for (size_t i = 0; i < count; i++) {
        const uint8_t *datagram = view + i * stride;
        size_t before = index;
        uint32_t offset_before = offset;
        index = get16(datagram + fixed);
        offset = get32(datagram + fixed + 4);
        int verdict = is_promised(to, &path, index, datagram, nodes + i * NODE);
        if (verdict && i && verdicts[i - 1] && index == before + 1 &&
            offset == (uint64_t)offset_before + stride)
            verdict = FOLLOWS;
        verdicts[i] = (char)verdict;
    }
}

/* check(view, stride, prefix, least, depth, leaf block, key block, roots, packets)
 * -> a verdict for each datagram of the run: FORGED, PROMISED, FOLLOWS */
static PyObject *check(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    Promise to;
    Py_buffer view;
    const uint8_t *leaf_block, *key_block;
    size_t stride, depth;
    Py_ssize_t roots;
    if (!has_count(given, 9) || !take_number(args[1], 1, LARGEST, &stride) ||
        !take_part(args[2], &to.prefix, HEAD) ||
        !take_number(args[3], TAIL, LARGEST, &to.least) ||
        !take_number(args[4], 0, MAX_DEPTH, &depth) ||
        !take_part(args[5], &leaf_block, BLOCK) ||
        !take_part(args[6], &key_block, BLOCK) ||
        !take_bytes(args[7], &to.roots, &roots) || !has_size(roots % NODE, 0) ||
        !take_number(args[8], 0, MAX_PACKETS, &to.packets) ||
        PyObject_GetBuffer(args[0], &view, PyBUF_SIMPLE) < 0)
        return NULL;
    to.root_count = (size_t)roots / NODE;
    to.depth = (unsigned)depth;
    size_t count = run_length(&to, view.buf, (size_t)view.len, stride);
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)count);
    uint8_t *nodes = PyMem_Malloc(count * NODE + 1);
    if (result == NULL || nodes == NULL) {
        Py_CLEAR(result);
        PyMem_Free(nodes);
        PyErr_NoMemory();
        goto done;
    }
    char *verdicts = PyBytes_AsString(result);
    Py_BEGIN_ALLOW_THREADS
    to.keyed = started(key_block);
    to.start = to.depth ? started(leaf_block) : to.keyed;
    if (count)
        judge(&to, view.buf, (size_t)view.len, stride, count, nodes, verdicts);
    Py_END_ALLOW_THREADS
    PyMem_Free(nodes);
done:
    PyBuffer_Release(&view);
    return result;
}

/* -- opening packets that were checked --------------------------------------------- */

/* Decrypted packets at equal distances: frame word and body of each. */
typedef struct {
    const uint8_t *text;
    size_t size, stride, packet_size, count;
} Text;

static size_t body_at(const Text *text, size_t index) {
    return index * text->stride + TAIL + WORD;
}

/* Bytes of a body; the last may be shorter, and was compared with that before. */
static size_t body_size(const Text *text, size_t index) {
    size_t end = index * text->stride + text->packet_size;
    return (end < text->size ? end : text->size) - body_at(text, index);
}

static uint64_t word_of(const Text *text, size_t index) {
    return get64(text->text + index * text->stride + TAIL);
}

/* Whether two whole UDP packets may be joined: see same_flow in packets/frames.py. */
static int same_flow(uint64_t word, const uint8_t *first, size_t size,
                     const uint8_t *other, size_t other_size) {
    if (other_size > size)
        return 0;
    if (word == UINT64_C(0x0000148600000000)) /* IPv4 header of 20 bytes, then UDP */
        return other_size > 28 && first[0] == 0x45 && first[9] == 17 &&
               memcmp(first + 12, other + 12, 12) == 0 &&
               memcmp(first + 8, other + 8, 2) == 0 && memcmp(first, other, 2) == 0 &&
               memcmp(first + 6, other + 6, 2) == 0 && !(first[6] & 0x3F) && !first[7];
    if (word == UINT64_C(0x0000288600000000)) /* IPv6 header of 40 bytes, then UDP */
        return other_size > 48 && first[6] == 17 &&
               memcmp(first + 6, other + 6, 38) == 0 && memcmp(first, other, 4) == 0;
    return 0;
}

/* How many packets from ``at`` on make one frame, and how many bytes of each but the
 * first are headers that it has already. */
static size_t frame_from(const Text *text, size_t at, size_t most_count,
                         size_t most_bytes, size_t *skip) {
    uint64_t word = word_of(text, at);
    size_t until = at + 1, first_size = body_size(text, at), total = first_size;
    const uint8_t *first = text->text + body_at(text, at);
    if (word >> 56) { /* segments of a super-packet, in sequence */
        *skip = word >> 48 & 0xFF;
        while (until < text->count && word_of(text, until) > word &&
               word_of(text, until) - word == until - at)
            until++;
        return until;
    }
    *skip = (word >> 40 & 0xFF) + 8; /* whole packets of one flow */
    while (until < text->count && until - at < most_count &&
           word_of(text, until) == word) {
        size_t size = body_size(text, until);
        total += size;
        if (total > most_bytes || !same_flow(word, first, first_size,
                                             text->text + body_at(text, until), size))
            break;
        until++;
        if (size < first_size)
            break;
    }
    return until;
}

/* The first packet whole, behind it the others without ``skip`` bytes. */
static PyObject *joined(const Text *text, size_t at, size_t until, size_t skip) {
    size_t size = 0;
    for (size_t i = at; i < until; i++) {
        size_t length = body_size(text, i), less = i == at ? 0 : skip;
        size += length > less ? length - less : 0;
    }
    PyObject *result = PyBytes_FromStringAndSize(NULL, (Py_ssize_t)size);
    if (result == NULL)
        return NULL;
    uint8_t *to = (uint8_t *)PyBytes_AsString(result);
    for (size_t i = at; i < until; i++) {
        size_t length = body_size(text, i), less = i == at ? 0 : skip;
        if (length <= less)
            continue;
        memcpy(to, text->text + body_at(text, i) + less, length - less);
        to += length - less;
    }
    return result;
}

static PyObject *frames_of(const Text *text, size_t most_count, size_t most_bytes) {
    PyObject *list = PyList_New(0);
    for (size_t at = 0, until; list != NULL && at < text->count; at = until) {
        size_t skip;
        until = frame_from(text, at, most_count, most_bytes, &skip);
        PyObject *data = joined(text, at, until, skip);
        PyObject *frame =
            data == NULL ? NULL
                         : Py_BuildValue("(nnKnN)", (Py_ssize_t)at, (Py_ssize_t)until,
                                         (unsigned long long)word_of(text, at),
                                         (Py_ssize_t)body_size(text, at), data);
        if (frame == NULL || PyList_Append(list, frame) < 0)
            Py_CLEAR(list);
        Py_XDECREF(frame);
    }
    return list;
}

/* open(cipher, place, offset, view, stride, size, most packets, most bytes)
 * -> [(first packet, one past the last, frame word, bytes of the first, data)] */
static PyObject *open_run(PyObject *module, PyObject *const *args, Py_ssize_t given) {
    PyObject *result = NULL;
    const uint8_t *place;
    size_t offset, stride, size, most_count, most_bytes;
    Py_buffer view;
    if (!has_count(given, 8) || !take_part(args[1], &place, PLACE) ||
        !take_number(args[2], 0, PY_SSIZE_T_MAX, &offset) ||
        !take_number(args[4], 1, LARGEST, &stride) ||
        !take_number(args[5], 1, stride, &size) ||
        !take_number(args[6], 0, LARGEST, &most_count) ||
        !take_number(args[7], 0, LARGEST, &most_bytes))
        return NULL;
    EVP_CIPHER_CTX *context = PyCapsule_GetPointer(args[0], CIPHER);
    if (context == NULL || PyObject_GetBuffer(args[3], &view, PyBUF_SIMPLE) < 0)
        return NULL;
    uint8_t *text = NULL;
    if (!has_size(view.len > LARGEST, 0))
        goto done;
    text = PyMem_Malloc((size_t)view.len + 1);
    if (text == NULL) {
        PyErr_NoMemory();
        goto done;
    }
    int opened;
    Py_BEGIN_ALLOW_THREADS
    opened = apply(context, place, offset, view.buf, text, (size_t)view.len);
    Py_END_ALLOW_THREADS
    if (!opened) {
        PyErr_SetString(PyExc_RuntimeError, "libcrypto does not decrypt");
        goto done;
    }
    Text all = {text, (size_t)view.len, stride, size, 0};
    /* Those that have a body; what is no longer than its heads is a keepalive. */
    while (all.packet_size > TAIL + WORD && body_at(&all, all.count) < all.size)
        all.count++;
    result = frames_of(&all, most_count, most_bytes);
done:
    PyMem_Free(text);
    PyBuffer_Release(&view);
    return result;
}

/* pairs(wanted) -> whether two packets are hashed at once from now on; for tests */
static PyObject *pairs(PyObject *module, PyObject *wanted) {
    int wants = PyObject_IsTrue(wanted);
    if (wants < 0)
        return NULL;
    by_pairs = wants && has_pairs();
    return PyBool_FromLong(by_pairs);
}

#define CALL(function) ((PyCFunction)(void (*)(void))(function))

static PyMethodDef methods[] = {
    {"pairs", pairs, METH_O, NULL},
    {"cipher", make_cipher, METH_O, NULL},
    {"descend", CALL(descend), METH_FASTCALL, NULL},
    {"seal", CALL(seal), METH_FASTCALL, NULL},
    {"check", CALL(check), METH_FASTCALL, NULL},
    {"open", CALL(open_run), METH_FASTCALL, NULL},
    {NULL, NULL, 0, NULL},
};

static struct PyModuleDef definition = {PyModuleDef_HEAD_INIT, "_kernel", NULL, 0,
                                        methods,               NULL,      NULL, NULL,
                                        NULL};

PyMODINIT_FUNC PyInit__kernel(void) {
    PyObject *module = PyModule_Create(&definition);
    by_pairs = has_pairs();
    if (module != NULL && PyModule_AddStringConstant(
                              module, "libcrypto", OpenSSL_version(OPENSSL_VERSION)) < 0)
        Py_CLEAR(module);
    return module;
}
