/*
 * DPDK's rte_acl on a rule file in ClassBench's format and a trace, for comparison with
 * `vswitch bench acl`. One JSON line: nanoseconds per packet of every pass, seconds to build, bytes,
 * and a checksum of which rule each packet met, which both contestants must print alike.
 *
 *   rte_acl RULES TRACE PASSES MAX_SIZE [EAL arguments...]
 *
 * MAX_SIZE is rte_acl_config.max_size in bytes; 0 leaves the tables as large as they like, which is
 * fastest to ask where caches are large. The classify function is DPDK's own choice for this
 * processor; `--force-max-simd-bitwidth=512` among the EAL arguments lets it take AVX-512.
 * A trace line is: source destination source-port destination-port protocol, in decimal.
 */
#include <errno.h>
#include <inttypes.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include <rte_acl.h>
#include <rte_byteorder.h>
#include <rte_eal.h>
#include <rte_malloc.h>
#include <rte_version.h>
#include <rte_vect.h>

#define BURST 32

/* What rte_acl reads of a packet: big-endian, first one byte, then four at a time. */
struct packet {
	uint8_t protocol;
	uint8_t pad[3];
	uint32_t src, dst;
	uint16_t sport, dport;
};

enum { PROTOCOL, SRC, DST, SPORT, DPORT, FIELDS };

static const struct rte_acl_field_def defs[FIELDS] = {
	{ RTE_ACL_FIELD_TYPE_BITMASK, 1, PROTOCOL, 0, offsetof(struct packet, protocol) },
	{ RTE_ACL_FIELD_TYPE_MASK, 4, SRC, 1, offsetof(struct packet, src) },
	{ RTE_ACL_FIELD_TYPE_MASK, 4, DST, 2, offsetof(struct packet, dst) },
	{ RTE_ACL_FIELD_TYPE_RANGE, 2, SPORT, 3, offsetof(struct packet, sport) },
	{ RTE_ACL_FIELD_TYPE_RANGE, 2, DPORT, 3, offsetof(struct packet, dport) },
};

RTE_ACL_RULE_DEF(rule, FIELDS);

static void fail(const char *what, int code)
{
	fprintf(stderr, "rte_acl: %s: %s\n", what, code ? strerror(code) : "not understood");
	exit(1);
}

static double seconds(void)
{
	struct timespec now;
	clock_gettime(CLOCK_MONOTONIC, &now);
	return now.tv_sec + now.tv_nsec * 1e-9;
}

static size_t heap(void)
{
	size_t bytes = 0;
	struct rte_malloc_socket_stats stats;
	for (int socket = 0; socket < RTE_MAX_NUMA_NODES; socket++)
		if (rte_malloc_get_socket_stats(socket, &stats) == 0)
			bytes += stats.heap_allocsz_bytes;
	return bytes;
}

static FILE *open_file(const char *path)
{
	FILE *file = fopen(path, "r");
	if (!file)
		fail(path, errno);
	return file;
}

static struct rule *read_rules(const char *path, uint32_t *count)
{
	FILE *file = open_file(path);
	struct rule *rules = NULL;
	char line[512];
	uint32_t n = 0;
	while (fgets(line, sizeof(line), file)) {
		uint32_t s[4], sl, d[4], dl, sp[2], dp[2], proto, mask;
		if (strspn(line, " \t\r\n") == strlen(line))
			continue;
		if (sscanf(line, " @%u.%u.%u.%u/%u %u.%u.%u.%u/%u %u : %u %u : %u %x/%x",
				s, s + 1, s + 2, s + 3, &sl, d, d + 1, d + 2, d + 3, &dl,
				sp, sp + 1, dp, dp + 1, &proto, &mask) != 16)
			fail(line, 0);
		if ((n & (n - 1)) == 0) {
			rules = realloc(rules, (n ? 2 * (size_t)n : 1) * sizeof(*rules));
			if (!rules)
				fail("rules", ENOMEM);
		}
		struct rule *r = &rules[n];
		memset(r, 0, sizeof(*r));
		r->data.category_mask = 1;
		r->data.priority = RTE_ACL_MAX_PRIORITY - n;
		r->data.userdata = ++n;
		r->field[PROTOCOL].value.u8 = proto;
		r->field[PROTOCOL].mask_range.u8 = mask;
		r->field[SRC].value.u32 = s[0] << 24 | s[1] << 16 | s[2] << 8 | s[3];
		r->field[SRC].mask_range.u32 = sl;
		r->field[DST].value.u32 = d[0] << 24 | d[1] << 16 | d[2] << 8 | d[3];
		r->field[DST].mask_range.u32 = dl;
		r->field[SPORT].value.u16 = sp[0];
		r->field[SPORT].mask_range.u16 = sp[1];
		r->field[DPORT].value.u16 = dp[0];
		r->field[DPORT].mask_range.u16 = dp[1];
	}
	fclose(file);
	*count = n;
	return rules;
}

static struct packet *read_trace(const char *path, uint32_t *count)
{
	FILE *file = open_file(path);
	struct packet *trace = NULL;
	uint32_t n = 0, src, dst, sport, dport, protocol;
	while (fscanf(file, "%u %u %u %u %u%*[^\n]", &src, &dst, &sport, &dport, &protocol) == 5) {
		if ((n & (n - 1)) == 0) {
			trace = realloc(trace, (n ? 2 * (size_t)n : 1) * sizeof(*trace));
			if (!trace)
				fail("trace", ENOMEM);
		}
		trace[n++] = (struct packet){
			.protocol = protocol,
			.src = rte_cpu_to_be_32(src),
			.dst = rte_cpu_to_be_32(dst),
			.sport = rte_cpu_to_be_16(sport),
			.dport = rte_cpu_to_be_16(dport),
		};
	}
	if (!feof(file))
		fail(path, 0);
	fclose(file);
	*count = n;
	return trace;
}

int main(int argc, char **argv)
{
	if (argc < 5) {
		fprintf(stderr, "usage: rte_acl RULES TRACE PASSES MAX_SIZE [EAL arguments...]\n");
		return 2;
	}
	char **args = argv + 1;
	int passes = atoi(args[2]);
	argv[4] = argv[0];
	if (rte_eal_init(argc - 4, argv + 4) < 0)
		fail("rte_eal_init", rte_errno);

	uint32_t count, packets;
	struct rule *rules = read_rules(args[0], &count);
	struct packet *trace = read_trace(args[1], &packets);
	struct rte_acl_param param = {
		.name = "rules",
		.socket_id = SOCKET_ID_ANY,
		.rule_size = RTE_ACL_RULE_SZ(FIELDS),
		.max_rule_num = count,
	};
	struct rte_acl_ctx *acl = rte_acl_create(&param);
	if (!acl)
		fail("rte_acl_create", rte_errno);
	struct rte_acl_config config = {
		.num_categories = 1,
		.num_fields = FIELDS,
		.max_size = strtoull(args[3], NULL, 0),
	};
	memcpy(config.defs, defs, sizeof(defs));

	size_t before = heap();
	double start = seconds();
	int code = rte_acl_add_rules(acl, (struct rte_acl_rule *)rules, count);
	if (code)
		fail("rte_acl_add_rules", -code);
	code = rte_acl_build(acl, &config);
	if (code)
		fail("rte_acl_build", -code);
	double build = seconds() - start;
	size_t bytes = heap() - before;

	uint32_t *results = calloc(packets, sizeof(*results));
	const uint8_t **data = calloc(packets, sizeof(*data));
	if (!results || !data)
		fail("results", ENOMEM);
	for (uint32_t i = 0; i < packets; i++)
		data[i] = (const uint8_t *)&trace[i];
	printf("{\"contestant\":\"rte_acl\",\"version\":\"%s\",\"simd_bits\":%u,\"max_size\":%zu,"
		"\"rules\":%u,\"packets\":%u,\"build_s\":%.6f,\"bytes\":%zu,\"ns\":[",
		rte_version(), rte_vect_get_max_simd_bitwidth(), config.max_size, count, packets, build, bytes);
	/* The first pass warms caches and is not counted. */
	for (int pass = 0; pass <= passes; pass++) {
		start = seconds();
		for (uint32_t i = 0; i < packets; i += BURST) {
			uint32_t n = packets - i < BURST ? packets - i : BURST;
			code = rte_acl_classify(acl, data + i, results + i, n, 1);
			if (code)
				fail("rte_acl_classify", -code);
		}
		double ns = (seconds() - start) * 1e9 / packets;
		if (pass)
			printf("%s%.2f", pass > 1 ? "," : "", ns);
	}
	/* FNV-1a over the matches, 0 where none. */
	uint64_t sum = 0xcbf29ce484222325;
	uint32_t matched = 0;
	for (uint32_t i = 0; i < packets; i++) {
		sum = (sum ^ results[i]) * 0x100000001b3;
		matched += results[i] != 0;
	}
	printf("],\"matched\":%u,\"checksum\":\"%016" PRIx64 "\"}\n", matched, sum);
	return 0;
}
