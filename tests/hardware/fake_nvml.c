/* A stand-in for NVIDIA's libnvidia-ml.so.1, driven by the text file that FAKE_NVML names, read anew at every call.

   Lines are `key=value`, device keys start with the device's index: `0.name=NVIDIA H200`. A value `!15` makes the call
   return that NVML error; an absent device value answers NOT_SUPPORTED (3), as real devices do. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

typedef int nvmlReturn_t;
typedef struct { unsigned long long total, free, used; } nvmlMemory_t;
typedef struct { unsigned int gpu, memory; } nvmlUtilization_t;
typedef struct { unsigned int pid; unsigned long long used; unsigned int gi, ci; } nvmlProcessInfo_t;

enum { OK = 0, NOT_SUPPORTED = 3, INSUFFICIENT_SIZE = 7, LOST = 15, INVALID = 2 };

static int lookup(const char *key, char *value, size_t size) {
    const char *path = getenv("FAKE_NVML");
    FILE *file = path ? fopen(path, "r") : NULL;
    char line[2048];
    size_t length = strlen(key);
    int found = 0;
    if (!file) return 0;
    while (fgets(line, sizeof line, file)) {
        if (strncmp(line, key, length) == 0 && line[length] == '=') {
            line[strcspn(line, "\n")] = 0;
            snprintf(value, size, "%s", line + length + 1);
            found = 1;
        }
    }
    fclose(file);
    return found;
}

static nvmlReturn_t system_value(const char *key, char *value, size_t size) {
    if (!lookup(key, value, size)) return NOT_SUPPORTED;
    return value[0] == '!' ? atoi(value + 1) : OK;
}

static nvmlReturn_t device_value(void *device, const char *key, char *value, size_t size) {
    char name[128], lost[16];
    int index = (int)(long)device - 1;
    snprintf(name, sizeof name, "%d.lost", index);
    if (lookup(name, lost, sizeof lost) && lost[0] == '1') return LOST;
    snprintf(name, sizeof name, "%d.%s", index, key);
    return system_value(name, value, size);
}

static nvmlReturn_t device_number(void *device, const char *key, unsigned int *answer) {
    char value[2048];
    nvmlReturn_t code = device_value(device, key, value, sizeof value);
    if (code == OK) *answer = (unsigned int)strtoul(value, NULL, 0);
    return code;
}

nvmlReturn_t nvmlInitWithFlags(unsigned int flags) {
    char value[64];
    (void)flags;
    return lookup("init", value, sizeof value) ? atoi(value) : OK;
}
nvmlReturn_t nvmlShutdown(void) { return OK; }
const char *nvmlErrorString(nvmlReturn_t code) { return code == 18 ? "Driver/library version mismatch" : "error"; }

nvmlReturn_t nvmlSystemGetDriverVersion(char *text, unsigned int size) { return system_value("driver", text, size); }
nvmlReturn_t nvmlSystemGetCudaDriverVersion_v2(int *version) {
    char value[64];
    nvmlReturn_t code = system_value("cuda", value, sizeof value);
    if (code == OK) *version = atoi(value);
    return code;
}
nvmlReturn_t nvmlDeviceGetCount_v2(unsigned int *count) {
    char value[64];
    nvmlReturn_t code = system_value("count", value, sizeof value);
    if (code == OK) *count = (unsigned int)atoi(value);
    return code;
}
nvmlReturn_t nvmlDeviceGetHandleByIndex_v2(unsigned int index, void **device) {
    char name[64], value[64];
    snprintf(name, sizeof name, "%u.open", index);
    if (lookup(name, value, sizeof value) && value[0] == '!') return atoi(value + 1);
    *device = (void *)(long)(index + 1);
    return OK;
}
nvmlReturn_t nvmlDeviceGetName(void *d, char *text, unsigned int size) { return device_value(d, "name", text, size); }
nvmlReturn_t nvmlDeviceGetUUID(void *d, char *text, unsigned int size) { return device_value(d, "uuid", text, size); }
nvmlReturn_t nvmlDeviceGetCudaComputeCapability(void *d, int *major, int *minor) {
    char value[64];
    nvmlReturn_t code = device_value(d, "capability", value, sizeof value);
    if (code == OK && sscanf(value, "%d.%d", major, minor) != 2) return INVALID;
    return code;
}
nvmlReturn_t nvmlDeviceGetMemoryInfo(void *d, nvmlMemory_t *memory) {
    char value[128];
    nvmlReturn_t code = device_value(d, "memory", value, sizeof value);
    if (code == OK) {
        if (sscanf(value, "%llu %llu", &memory->total, &memory->used) != 2) return INVALID;
        memory->free = memory->total - memory->used;
    }
    return code;
}
nvmlReturn_t nvmlDeviceGetUtilizationRates(void *d, nvmlUtilization_t *rates) {
    rates->memory = 0;
    return device_number(d, "utilization", &rates->gpu);
}
nvmlReturn_t nvmlDeviceGetTemperature(void *d, int sensor, unsigned int *answer) {
    (void)sensor;
    return device_number(d, "temperature", answer);
}
nvmlReturn_t nvmlDeviceGetTemperatureThreshold(void *d, int kind, unsigned int *answer) {
    return kind == 1 ? device_number(d, "slowdown", answer) : NOT_SUPPORTED;
}
nvmlReturn_t nvmlDeviceGetPowerUsage(void *d, unsigned int *milliwatts) { return device_number(d, "power", milliwatts); }
nvmlReturn_t nvmlDeviceGetEnforcedPowerLimit(void *d, unsigned int *milliwatts) {
    return device_number(d, "power_limit", milliwatts);
}
nvmlReturn_t nvmlDeviceGetClockInfo(void *d, int kind, unsigned int *mhz) {
    return device_number(d, kind == 1 ? "clock" : kind == 2 ? "memory_clock" : "other_clock", mhz);
}
nvmlReturn_t nvmlDeviceGetMaxClockInfo(void *d, int kind, unsigned int *mhz) {
    return kind == 1 ? device_number(d, "clock_max", mhz) : NOT_SUPPORTED;
}
nvmlReturn_t nvmlDeviceGetCurrentClocksThrottleReasons(void *d, unsigned long long *bits) {
    char value[64];
    nvmlReturn_t code = device_value(d, "throttle", value, sizeof value);
    if (code == OK) *bits = strtoull(value, NULL, 0);
    return code;
}
nvmlReturn_t nvmlDeviceGetMigMode(void *d, unsigned int *current, unsigned int *pending) {
    *pending = 0;
    return device_number(d, "mig", current);
}

/* processes=PID:BYTES PID:BYTES ... ; BYTES of -1 stands for "not available" */
static nvmlReturn_t list(void *d, const char *key, unsigned int *count, nvmlProcessInfo_t *out) {
    char value[2048], *word;
    unsigned int room = *count, n = 0;
    nvmlReturn_t code = device_value(d, key, value, sizeof value);
    if (code == NOT_SUPPORTED && strcmp(key, "graphics") == 0) { *count = 0; return OK; }
    if (code != OK) return code;
    for (word = strtok(value, " "); word; word = strtok(NULL, " "), n++) {
        char *colon = strchr(word, ':');
        if (!colon) return INVALID;
        if (out && n < room) {
            memset(&out[n], 0, sizeof out[n]);
            out[n].pid = (unsigned int)atoi(word);
            out[n].used = (unsigned long long)strtoll(colon + 1, NULL, 10);
        }
    }
    *count = n;
    return n > room ? INSUFFICIENT_SIZE : OK;
}
#ifdef OLD_DRIVER /* a driver of 2021 has no third version */
#define COMPUTE nvmlDeviceGetComputeRunningProcesses_v2
#define GRAPHICS nvmlDeviceGetGraphicsRunningProcesses_v2
#else
#define COMPUTE nvmlDeviceGetComputeRunningProcesses_v3
#define GRAPHICS nvmlDeviceGetGraphicsRunningProcesses_v3
#endif
nvmlReturn_t COMPUTE(void *d, unsigned int *count, nvmlProcessInfo_t *out) { return list(d, "processes", count, out); }
nvmlReturn_t GRAPHICS(void *d, unsigned int *count, nvmlProcessInfo_t *out) { return list(d, "graphics", count, out); }
