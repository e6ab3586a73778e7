/* A load generator that checks each answer: load --port N [--key K] [--connections C] ...

   Sends chat requests with a token of their own over keep-alive connections and counts every answer
   that is not the request's own. Closed loop, or --rate for an open one; prints one line of JSON.
     --requests N     how many; 0 means until --seconds have passed
     --seconds S      sends nothing more after so long
     --rate R         requests a second, latency from when each was due; 0: the next when one is done
     --stream-every K each K-th request streams; 1 all, 0 none
     --chunks N, --gap MS   asked of the upstream for a stream
     --size B         bytes of a request's message
     --ramp MS        starts the connections spread over so long
     --skip N         leaves the first N requests out of the times
     --hold           once every stream has begun, says so and holds them until stdin ends */
#include "wire.h"

#include <arpa/inet.h>
#include <getopt.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

enum { PORT, CONNECTIONS, REQUESTS, SECONDS, RATE, STREAM_EVERY, CHUNKS, GAP, SIZE, RAMP, SKIP,
       HOLD, KEY };
static long given[] = {0, 32, 0, 0, 0, 0, 50, 20, 500, 0, 0, 0};
static const char *key = "none";

typedef struct {
    int64_t *values;
    size_t size, room;
} Times;

enum Stage { HEAD, SIZED, CHUNK_SIZE, CHUNK, DONE };

typedef struct Conn {
    int fd; /* -1 when closed */
    bool busy, streamed;
    Bytes out, in, body;
    size_t sent;
    enum Stage stage;
    int status;
    size_t wanted;  /* bytes still to come of the body or of its chunk */
    size_t scanned; /* bytes of the body in which tokens were counted */
    long number, tokens, own;
    int64_t began; /* when it was due or sent, ns */
    char token[TOKEN_SIZE + 1];
    struct Conn *next; /* the next free one */
} Conn;

static Bytes templates[2];
static size_t token_at[2];
static int poller;
static Conn *conns, *unused;
static long issued, finished, chunks, failures, mismatches, streaming;
static uint64_t salt;
static Times latency, first, delay;

static void note(Times *times, const Conn *conn, int64_t value) {
    if (conn->number < given[SKIP]) return;
    if (times->size == times->room) {
        times->room = times->room * 2 + 1024;
        times->values = realloc(times->values, times->room * sizeof(int64_t));
        if (!times->values) die("memory");
    }
    times->values[times->size++] = value;
}

static void make_template(int streamed) {
    static const char words[] = "the quick brown fox jumps over the lazy dog and then rests, ";
    Bytes body = {0};
    char text[512];
    const char *opening = "{\"model\":\"bench-model\",\"messages\":[{\"role\":\"user\",\"content\":\"";
    add(&body, opening, strlen(opening));
    size_t at = body.size, size = (size_t)snprintf(text, sizeof text, "tok-%016d chunks=%ld gap=%ld ",
                                                   0, given[CHUNKS], given[GAP]);
    add(&body, text, size);
    for (long left = given[SIZE] - (long)size; left > 0; left -= (long)sizeof words - 1) {
        add(&body, words, (size_t)left < sizeof words - 1 ? (size_t)left : sizeof words - 1);
    }
    const char *closing =
        streamed ? "\"}],\"stream\":true,\"stream_options\":{\"include_usage\":true}}" : "\"}]}";
    add(&body, closing, strlen(closing));
    size = (size_t)snprintf(text, sizeof text,
                            "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1:%ld\r\n"
                            "Authorization: Bearer %s\r\nContent-Type: application/json\r\n"
                            "Content-Length: %zu\r\n\r\n", given[PORT], key, body.size);
    add(&templates[streamed], text, size);
    add(&templates[streamed], body.data, body.size);
    token_at[streamed] = size + at;
    free(body.data);
}

static void fail(Conn *conn) {
    if (conn->fd >= 0) close(conn->fd);
    conn->fd = -1;
}

static void connect_to(Conn *conn) {
    conn->fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0);
    int on = 1;
    setsockopt(conn->fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)given[PORT])};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (connect(conn->fd, (struct sockaddr *)&address, sizeof address) && errno != EINPROGRESS)
        die("connect");
    struct epoll_event event = {EPOLLIN | EPOLLOUT | EPOLLET, {.ptr = conn}};
    epoll_ctl(poller, EPOLL_CTL_ADD, conn->fd, &event);
}

static void release(Conn *conn, bool right) {
    if (!right) failures++;
    conn->busy = false;
    conn->next = unused;
    unused = conn;
    finished++;
}

static void flush(Conn *conn) {
    while (conn->busy && conn->sent < conn->out.size) {
        ssize_t sent = send(conn->fd, conn->out.data + conn->sent, conn->out.size - conn->sent,
                            MSG_NOSIGNAL);
        if (sent < 0 && (errno == EAGAIN || errno == ENOTCONN)) return;
        if (sent < 0) {
            fail(conn);
            release(conn, false);
            return;
        }
        conn->sent += (size_t)sent;
    }
}

static void issue(int64_t due) {
    Conn *conn = unused;
    unused = conn->next;
    if (conn->fd < 0) connect_to(conn);
    conn->busy = true;
    conn->number = issued++;
    conn->streamed = given[STREAM_EVERY] && conn->number % given[STREAM_EVERY] == 0;
    conn->stage = HEAD;
    conn->in.size = conn->body.size = conn->out.size = 0;
    conn->sent = conn->scanned = 0;
    conn->tokens = conn->own = 0;
    const Bytes *template = &templates[conn->streamed];
    add(&conn->out, template->data, template->size);
    uint64_t unique = (salt + (uint64_t)conn->number) * 0x9E3779B97F4A7C15ULL;
    snprintf(conn->token, sizeof conn->token, TOKEN "%016llx", (unsigned long long)unique);
    memcpy(conn->out.data + token_at[conn->streamed], conn->token, TOKEN_SIZE);
    conn->began = given[RATE] ? due : now_ns();
    flush(conn);
}

/* Counts the tokens that arrived: in a stream each stands for one event. */
static void scan(Conn *conn) {
    int64_t now = now_ns();
    char *end = conn->body.data + conn->body.size, *found;
    while (conn->scanned + TOKEN_SIZE <= conn->body.size &&
           (found = memmem(conn->body.data + conn->scanned, conn->body.size - conn->scanned, TOKEN,
                           4)) && found + TOKEN_SIZE <= end) {
        if (memcmp(found, conn->token, TOKEN_SIZE) == 0) conn->own++;
        if (conn->streamed) {
            if (conn->tokens == 0) {
                note(&first, conn, now - conn->began);
                streaming++;
            }
            note(&delay, conn, now - conn->began - conn->tokens * given[GAP] * 1000000);
            chunks++;
        }
        conn->tokens++;
        conn->scanned = (size_t)(found - conn->body.data) + TOKEN_SIZE;
    }
}

static void finish(Conn *conn) {
    long expected = conn->streamed ? given[CHUNKS] : 1;
    bool ended = !conn->streamed || memmem(conn->body.data, conn->body.size, "[DONE]", 6);
    note(&latency, conn, now_ns() - conn->began);
    bool right = conn->status == 200;
    if (right && (conn->own != expected || conn->tokens != expected || !ended)) mismatches++;
    if (!right && failures == 0)
        fprintf(stderr, "first failure: %d %.*s\n", conn->status, (int)conn->body.size,
                conn->body.data ? conn->body.data : "");
    release(conn, right);
}

static bool read_head(Conn *conn) {
    size_t size = head_size(&conn->in);
    if (!size) return false;
    conn->status = atoi(conn->in.data + 9);
    const char *length = header(conn->in.data, size, "content-length:");
    conn->wanted = length ? strtoul(length, NULL, 10) : 0;
    conn->stage = length ? SIZED : CHUNK_SIZE;
    drop(&conn->in, size);
    return true;
}

static bool read_chunk_size(Conn *conn) {
    char *end = conn->in.size ? memmem(conn->in.data, conn->in.size, "\r\n", 2) : NULL;
    if (!end) return false;
    conn->wanted = strtoul(conn->in.data, NULL, 16);
    size_t size = (size_t)(end - conn->in.data) + 2;
    if (conn->wanted == 0 && conn->in.size < size + 2) return false;
    drop(&conn->in, conn->wanted ? size : size + 2);
    conn->stage = conn->wanted ? CHUNK : DONE;
    return true;
}

/* Moves what has arrived of the body; true when this piece is whole. */
static bool read_body(Conn *conn) {
    size_t size = conn->wanted < conn->in.size ? conn->wanted : conn->in.size;
    add(&conn->body, conn->in.data, size);
    drop(&conn->in, size);
    conn->wanted -= size;
    if (conn->wanted) return false;
    if (conn->stage == SIZED) {
        conn->stage = DONE;
        return true;
    }
    if (conn->in.size < 2) return false;
    drop(&conn->in, 2);
    conn->stage = CHUNK_SIZE;
    return true;
}

static void readable(Conn *conn) {
    for (;;) {
        ssize_t got = recv(conn->fd, room_for(&conn->in, 65536), 65536, 0);
        if (got < 0 && (errno == EAGAIN || errno == ENOTCONN)) break;
        if (got <= 0) {
            /* An idle connection may be closed; one with a request on it may not. */
            fail(conn);
            if (conn->busy) release(conn, false);
            return;
        }
        conn->in.size += (size_t)got;
    }
    bool more = conn->busy;
    while (more && conn->stage != DONE) {
        more = conn->stage == HEAD         ? read_head(conn)
               : conn->stage == CHUNK_SIZE ? read_chunk_size(conn)
                                           : read_body(conn);
    }
    if (!conn->busy) return;
    scan(conn);
    if (conn->stage == DONE) finish(conn);
}

static int by_size(const void *one, const void *other) {
    int64_t a = *(const int64_t *)one, b = *(const int64_t *)other;
    return (a > b) - (a < b);
}

static void print_times(const char *name, Times *times) {
    if (!times->size) return;
    qsort(times->values, times->size, sizeof(int64_t), by_size);
    const double at[] = {0.5, 0.9, 0.99};
    const char *names[] = {"p50", "p90", "p99"};
    printf(",\"%s\":{", name);
    for (int i = 0; i < 3; i++) {
        int64_t value = times->values[(size_t)(at[i] * (double)(times->size - 1))];
        printf("%s\"%s\":%.4f", i ? "," : "", names[i], (double)value / 1e6);
    }
    printf("}");
}

static void report(int64_t began) {
    double seconds = (double)(now_ns() - began) / 1e9;
    printf("{\"requests\":%ld,\"chunks\":%ld,\"failures\":%ld,\"mismatches\":%ld,"
           "\"seconds\":%.3f,\"rate\":%.1f", finished, chunks, failures, mismatches, seconds,
           (double)finished / seconds);
    print_times("latency", &latency);
    print_times("first", &first);
    print_times("delay", &delay);
    printf("}\n");
}

static void read_options(int count, char **values) {
    static const struct option options[] = {
        {"port", 1, 0, PORT},     {"connections", 1, 0, CONNECTIONS}, {"requests", 1, 0, REQUESTS},
        {"seconds", 1, 0, SECONDS}, {"rate", 1, 0, RATE},  {"stream-every", 1, 0, STREAM_EVERY},
        {"chunks", 1, 0, CHUNKS}, {"gap", 1, 0, GAP},      {"size", 1, 0, SIZE},
        {"ramp", 1, 0, RAMP},     {"skip", 1, 0, SKIP},    {"hold", 0, 0, HOLD},
        {"key", 1, 0, KEY},       {0}};
    int option;
    while ((option = getopt_long(count, values, "", options, NULL)) != -1) {
        if (option == '?') exit(2);
        if (option == KEY) key = optarg;
        else given[option] = option == HOLD ? 1 : atol(optarg);
    }
}

static int64_t due_at(int64_t began) {
    if (given[RATE]) return began + issued * 1000000000LL / given[RATE];
    if (issued < given[CONNECTIONS])
        return began + issued * given[RAMP] * 1000000 / given[CONNECTIONS];
    return 0;
}

/* Sends what is due; the ns until more is, or a second while no connection is free. */
static int64_t send_due(int64_t began, bool ended) {
    while (!ended && unused && (!given[REQUESTS] || issued < given[REQUESTS])) {
        int64_t due = due_at(began), now = now_ns();
        if (due > now) return due - now;
        issue(due);
    }
    return 1000000000;
}

static void hold(void) {
    if (!given[HOLD] || streaming < given[REQUESTS]) return;
    given[HOLD] = 0;
    printf("{\"open\":%ld}\n", streaming);
    fflush(stdout);
    struct epoll_event event = {EPOLLIN, {.ptr = NULL}};
    epoll_ctl(poller, EPOLL_CTL_ADD, STDIN_FILENO, &event);
}

static void run(int64_t began) {
    struct epoll_event events[256];
    for (;;) {
        bool ended = given[SECONDS] && now_ns() - began > given[SECONDS] * 1000000000LL;
        int64_t wait = send_due(began, ended);
        if (finished == issued && (ended || (given[REQUESTS] && issued >= given[REQUESTS]))) return;
        struct timespec pause = {wait / 1000000000, wait % 1000000000};
        int ready = epoll_pwait2(poller, events, 256, &pause, NULL);
        for (int i = 0; i < ready; i++) {
            Conn *conn = events[i].data.ptr;
            if (!conn) return;
            if (events[i].events & EPOLLOUT) flush(conn);
            if (conn->fd >= 0 && (events[i].events & ~(uint32_t)EPOLLOUT)) readable(conn);
        }
        hold();
    }
}

int main(int count, char **values) {
    read_options(count, values);
    signal(SIGPIPE, SIG_IGN);
    poller = epoll_create1(0);
    salt = (uint64_t)getpid() << 40;
    make_template(0);
    make_template(1);
    conns = calloc((size_t)given[CONNECTIONS], sizeof *conns);
    if (!conns) die("memory");
    for (long i = 0; i < given[CONNECTIONS]; i++) {
        conns[i].fd = -1;
        conns[i].next = unused;
        unused = &conns[i];
    }
    int64_t began = now_ns();
    run(began);
    report(began);
    return 0;
}
