/* What both ends of a benchmark need: growing bytes, a clock, header reads, a connection's flags. */
#ifndef WIRE_H
#define WIRE_H

#define _GNU_SOURCE
#include <errno.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>
#include <time.h>

#define TOKEN "tok-"
#define TOKEN_SIZE 20 /* tok- and 16 hex digits */

typedef struct {
    char *data;
    size_t size, room;
} Bytes;

static inline void die(const char *what) {
    perror(what);
    exit(1);
}

static inline char *room_for(Bytes *bytes, size_t more) {
    if (bytes->size + more > bytes->room) {
        bytes->room = (bytes->size + more) * 2;
        bytes->data = realloc(bytes->data, bytes->room);
        if (!bytes->data) die("memory");
    }
    return bytes->data + bytes->size;
}

static inline void add(Bytes *bytes, const char *data, size_t size) {
    memcpy(room_for(bytes, size), data, size);
    bytes->size += size;
}

static inline void drop(Bytes *bytes, size_t size) {
    bytes->size -= size;
    memmove(bytes->data, bytes->data + size, bytes->size);
}

static inline int64_t now_ns(void) {
    struct timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000000000LL + time.tv_nsec;
}

/* The bytes of a head up to and with its empty line, or 0 while that has not arrived. */
static inline size_t head_size(const Bytes *bytes) {
    char *end = bytes->size ? memmem(bytes->data, bytes->size, "\r\n\r\n", 4) : NULL;
    return end ? (size_t)(end - bytes->data) + 4 : 0;
}

/* The value of a header, `name` given with its colon, or NULL. */
static inline const char *header(const char *head, size_t size, const char *name) {
    size_t length = strlen(name);
    const char *line = head;
    while ((line = memchr(line, '\n', (size_t)(head + size - line)))) {
        line++;
        if (line + length >= head + size) return NULL;
        if (strncasecmp(line, name, length) == 0) {
            line += length;
            while (*line == ' ') line++;
            return line;
        }
    }
    return NULL;
}

#endif
