/*
 * Faults of a disk, for a process whose calls come here first (LD_PRELOAD). The file that $VPC_FAULTS names has a word a line:
 *   read-error, write-error, sync-error   the call fails with EIO
 *   no-space                              writes fail with ENOSPC
 *   short                                 a call transfers one block only
 *   slow                                  each call takes 30 ms longer
 * Of large files only. There is no io_uring here, as its calls do not come here.
 */
#define _GNU_SOURCE
#include <dlfcn.h>
#include <errno.h>
#include <fcntl.h>
#include <stdarg.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

static long (*real_syscall)(long, ...);
static ssize_t (*real_preadv)(int, const struct iovec *, int, off_t);
static ssize_t (*real_pwritev)(int, const struct iovec *, int, off_t);
static int (*real_fdatasync)(int);
static const char *path;

__attribute__((constructor)) static void find(void)
{
    real_syscall = (long (*)(long, ...))dlsym(RTLD_NEXT, "syscall");
    real_preadv = (ssize_t (*)(int, const struct iovec *, int, off_t))dlsym(RTLD_NEXT, "preadv");
    real_pwritev = (ssize_t (*)(int, const struct iovec *, int, off_t))dlsym(RTLD_NEXT, "pwritev");
    real_fdatasync = (int (*)(int))dlsym(RTLD_NEXT, "fdatasync");
    path = getenv("VPC_FAULTS");
}

static int faults(int fd, char *words, size_t size)
{
    struct stat file;
    int control;
    ssize_t length;

    words[0] = 0;
    if (!path || fstat(fd, &file) || file.st_size < 32 << 20)
        return 0;
    control = open(path, O_RDONLY | O_CLOEXEC);
    if (control < 0)
        return 0;
    length = read(control, words, size - 1);
    close(control);
    words[length > 0 ? length : 0] = 0;
    if (strstr(words, "slow")) {
        struct timespec time = {0, 30000000};
        nanosleep(&time, NULL);
    }
    return words[0] != 0;
}

long syscall(long number, ...)
{
    va_list list;
    long a[6];

    va_start(list, number);
    for (int i = 0; i < 6; i++)
        a[i] = va_arg(list, long);
    va_end(list);
    if (number == SYS_io_uring_setup) {
        errno = ENOSYS;
        return -1;
    }
    return real_syscall(number, a[0], a[1], a[2], a[3], a[4], a[5]);
}

static ssize_t fail(int error)
{
    errno = error;
    return -1;
}

static struct iovec one_block(const struct iovec *slices)
{
    struct iovec one = *slices;
    if (one.iov_len > 4096)
        one.iov_len = 4096;
    return one;
}

ssize_t preadv(int fd, const struct iovec *slices, int count, off_t at)
{
    char words[256];

    if (faults(fd, words, sizeof words)) {
        if (strstr(words, "read-error"))
            return fail(EIO);
        if (strstr(words, "short")) {
            struct iovec one = one_block(slices);
            return real_preadv(fd, &one, 1, at);
        }
    }
    return real_preadv(fd, slices, count, at);
}

ssize_t pwritev(int fd, const struct iovec *slices, int count, off_t at)
{
    char words[256];

    if (faults(fd, words, sizeof words)) {
        if (strstr(words, "write-error"))
            return fail(EIO);
        if (strstr(words, "no-space"))
            return fail(ENOSPC);
        if (strstr(words, "short")) {
            struct iovec one = one_block(slices);
            return real_pwritev(fd, &one, 1, at);
        }
    }
    return real_pwritev(fd, slices, count, at);
}

int fdatasync(int fd)
{
    char words[256];

    if (faults(fd, words, sizeof words) && strstr(words, "sync-error"))
        return fail(EIO);
    return real_fdatasync(fd);
}
