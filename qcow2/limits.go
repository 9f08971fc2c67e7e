package qcow2

// Our own limits: what an image may make us allocate or count before anything
// else about it is believed. Beyond them an image is refused, never truncated.
const (
	// MaxZones bounds the memory per zone. The kernel takes far fewer (16,384);
	// the difference can still be looked at offline.
	MaxZones = 1 << 20

	// maxL1Bytes and maxRefTableBytes are QEMU's limits (QCOW_MAX_L1_SIZE,
	// QCOW_MAX_REFTABLE_SIZE): both tables are kept in memory whole.
	maxL1Bytes       = 32 << 20
	maxRefTableBytes = 8 << 20

	// maxFileBytes is the end of what L1 and L2 entries can refer to: their
	// offsets have 56 bits. It keeps all sums of offsets far from overflows.
	maxFileBytes = 1 << 56

	// maxExtensions bounds a list that a header of empty extensions could make
	// a quarter of a million long. QEMU writes six at most.
	maxExtensions = 256

	// maxInfoTables bounds, in bytes, the L2 tables that a description reads:
	// those of 8 TiB with clusters of the usual size. Beyond it says so.
	maxInfoTables = 1 << 30

	// maxFreeRuns bounds the memory for free space that lies in pieces, to 64
	// MiB and what one refcount block adds. Further pieces stay unused until
	// the image is opened again.
	maxFreeRuns = 4 << 20

	// walkChunk is how much of a table is read at once.
	walkChunk = 64 << 10
)
