/* A model provider for benchmarks: upstream PORT

   Answers every POST with the token (tok- and 16 hex digits) found in its body, so that the caller
   can tell whose answer it is. With "stream":true it sends the token in each of `chunks=N` events,
   one each `gap=MS`, both numbers read from the body. A body is always read to its end. */
#include "wire.h"

#include <arpa/inet.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <signal.h>
#include <sys/epoll.h>
#include <sys/socket.h>
#include <unistd.h>

typedef struct Conn {
    int fd;
    Bytes in, out;
    bool blocked; /* waits for room to write */
    char token[TOKEN_SIZE + 1];
    bool usage;
    long left;        /* events still to send; 0 means no stream */
    int64_t gap, due; /* ns */
    struct Conn *before, *after;
} Conn;

static int poller;
static Conn *first_due, *last_due; /* streams, the next one due first */

static void watch(Conn *conn, bool blocked) {
    if (conn->blocked == blocked) return;
    conn->blocked = blocked;
    struct epoll_event event = {EPOLLIN | (blocked ? EPOLLOUT : 0), {.ptr = conn}};
    epoll_ctl(poller, EPOLL_CTL_MOD, conn->fd, &event);
}

/* Streams share a gap, so a stream that moves on goes to the end at once. */
static void schedule(Conn *conn) {
    Conn *before = last_due;
    while (before && before->due > conn->due) before = before->before;
    conn->before = before;
    conn->after = before ? before->after : first_due;
    *(before ? &before->after : &first_due) = conn;
    *(conn->after ? &conn->after->before : &last_due) = conn;
}

static void unschedule(Conn *conn) {
    *(conn->before ? &conn->before->after : &first_due) = conn->after;
    *(conn->after ? &conn->after->before : &last_due) = conn->before;
}

static void leave(Conn *conn) {
    if (conn->left) unschedule(conn);
    close(conn->fd);
    free(conn->in.data);
    free(conn->out.data);
    free(conn);
}

/* False when the connection is gone. */
static bool flush(Conn *conn) {
    while (conn->out.size) {
        ssize_t sent = send(conn->fd, conn->out.data, conn->out.size, MSG_NOSIGNAL);
        if (sent < 0 && errno == EAGAIN) break;
        if (sent < 0) {
            leave(conn);
            return false;
        }
        drop(&conn->out, (size_t)sent);
    }
    watch(conn, conn->out.size > 0);
    return true;
}

static void frame(Conn *conn, const char *format, const char *text) {
    char event[512], size[16];
    int length = snprintf(event, sizeof event, format, text);
    add(&conn->out, size, (size_t)snprintf(size, sizeof size, "%x\r\n", (unsigned)length));
    add(&conn->out, event, (size_t)length);
    add(&conn->out, "\r\n", 2);
}

#define EVENT                                                                            \
    "data: {\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion.chunk\","             \
    "\"created\":1700000000,\"model\":\"bench-model\",\"choices\":"
#define USAGE "\"usage\":{\"prompt_tokens\":100,\"completion_tokens\":50,\"total_tokens\":150}"

static void next_event(Conn *conn) {
    const char *piece =
        EVENT "[{\"index\":0,\"delta\":{\"content\":\" %s\"},\"finish_reason\":null}]}\n\n";
    frame(conn, piece, conn->token);
    conn->left--;
    if (conn->left) {
        conn->due += conn->gap;
        return;
    }
    frame(conn, EVENT "[{\"index\":0,\"delta\":{},\"finish_reason\":\"%s\"}]}\n\n", "stop");
    if (conn->usage) frame(conn, EVENT "%s," USAGE "}\n\n", "[]");
    frame(conn, "data: %s\n\n", "[DONE]");
    add(&conn->out, "0\r\n\r\n", 5);
}

static long number(const Bytes *body, const char *name, long otherwise) {
    char *found = memmem(body->data, body->size, name, strlen(name));
    return found ? strtol(found + strlen(name), NULL, 10) : otherwise;
}

static bool is_true(const Bytes *body, const char *name) {
    char *found = memmem(body->data, body->size, name, strlen(name));
    if (!found) return false;
    found += strlen(name);
    while (*found == ':' || *found == ' ') found++;
    return strncmp(found, "true", 4) == 0;
}

static void answer_whole(Conn *conn) {
    char body[1024], head[160], filler[401];
    memset(filler, 'x', 400);
    filler[400] = 0;
    int size = snprintf(body, sizeof body,
                        "{\"id\":\"chatcmpl-bench\",\"object\":\"chat.completion\",\"created\":"
                        "1700000000,\"model\":\"bench-model\",\"choices\":[{\"index\":0,"
                        "\"message\":{\"role\":\"assistant\",\"content\":\"%s %s\"},"
                        "\"finish_reason\":\"stop\"}]," USAGE "}",
                        conn->token, filler);
    int length = snprintf(head, sizeof head,
                          "HTTP/1.1 200 OK\r\nContent-Type: application/json\r\n"
                          "Content-Length: %d\r\n\r\n", size);
    add(&conn->out, head, (size_t)length);
    add(&conn->out, body, (size_t)size);
}

static void answer(Conn *conn, const Bytes *body) {
    char *token = body->size ? memmem(body->data, body->size, TOKEN, 4) : NULL;
    memcpy(conn->token, token ? token : "tok-none000000000000", TOKEN_SIZE);
    if (!body->size || !is_true(body, "\"stream\"")) {
        answer_whole(conn);
        return;
    }
    const char *head = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
                       "Transfer-Encoding: chunked\r\n\r\n";
    add(&conn->out, head, strlen(head));
    conn->usage = is_true(body, "\"include_usage\"");
    conn->left = number(body, "chunks=", 1);
    conn->gap = number(body, "gap=", 0) * 1000000;
    conn->due = now_ns();
    next_event(conn);
    if (conn->left) schedule(conn);
}

/* Answers the request at the front of `in`, if all of it is there. */
static bool take(Conn *conn) {
    size_t head = head_size(&conn->in);
    if (!head || conn->left) return false;
    const char *length = header(conn->in.data, head, "content-length:");
    size_t size = length ? strtoul(length, NULL, 10) : 0;
    if (conn->in.size < head + size) return false;
    /* One byte more, so that text reads stop inside the buffer. */
    *room_for(&conn->in, 1) = 0;
    Bytes body = {conn->in.data + head, size, size};
    answer(conn, &body);
    drop(&conn->in, head + size);
    return true;
}

static void readable(Conn *conn) {
    for (;;) {
        char *room = room_for(&conn->in, 65536);
        ssize_t got = recv(conn->fd, room, 65536, 0);
        if (got < 0 && errno == EAGAIN) break;
        if (got <= 0) {
            leave(conn);
            return;
        }
        conn->in.size += (size_t)got;
        if (got < 65536) break;
    }
    while (take(conn)) {}
    flush(conn);
}

static void welcome(int listener) {
    int fd, on = 1;
    while ((fd = accept4(listener, NULL, NULL, SOCK_NONBLOCK)) >= 0) {
        setsockopt(fd, IPPROTO_TCP, TCP_NODELAY, &on, sizeof on);
        Conn *conn = calloc(1, sizeof *conn);
        if (!conn) die("memory");
        conn->fd = fd;
        struct epoll_event event = {EPOLLIN, {.ptr = conn}};
        epoll_ctl(poller, EPOLL_CTL_ADD, fd, &event);
    }
}

/* Sends what is due; the ns until something is, or -1. */
static int64_t send_due(void) {
    int64_t now = now_ns();
    while (first_due && first_due->due <= now) {
        Conn *conn = first_due;
        unschedule(conn);
        next_event(conn);
        if (conn->left) schedule(conn);
        flush(conn);
    }
    return first_due ? first_due->due - now : -1;
}

static int listen_on(int port) {
    int fd = socket(AF_INET, SOCK_STREAM | SOCK_NONBLOCK, 0), on = 1;
    setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &on, sizeof on);
    struct sockaddr_in address = {.sin_family = AF_INET, .sin_port = htons((uint16_t)port)};
    address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) || listen(fd, 4096)) die("listen");
    return fd;
}

int main(int count, char **values) {
    if (count != 2) {
        fprintf(stderr, "usage: upstream PORT\n");
        return 2;
    }
    signal(SIGPIPE, SIG_IGN);
    int listener = listen_on(atoi(values[1]));
    poller = epoll_create1(0);
    struct epoll_event event = {EPOLLIN, {.ptr = NULL}};
    epoll_ctl(poller, EPOLL_CTL_ADD, listener, &event);
    struct epoll_event events[256];
    for (;;) {
        int64_t wait = send_due();
        struct timespec pause = {wait / 1000000000, wait % 1000000000};
        int ready = epoll_pwait2(poller, events, 256, wait < 0 ? NULL : &pause, NULL);
        for (int i = 0; i < ready; i++) {
            Conn *conn = events[i].data.ptr;
            if (!conn) {
                welcome(listener);
            } else if (events[i].events & (EPOLLIN | EPOLLHUP | EPOLLERR)) {
                readable(conn);
            } else {
                flush(conn);
            }
        }
    }
}
