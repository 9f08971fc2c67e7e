package zbdtest

import (
	"encoding/binary"
	"fmt"
	"unsafe"

	"github.com/qzbd/qzbd/tests/zonemodel"
)

// aligned is memory that O_DIRECT accepts.
func aligned(n int64) []byte {
	const page = 4096
	b := make([]byte, n+page)
	shift := -int64(uintptr(unsafe.Pointer(&b[0]))) & (page - 1)
	return b[shift : shift+n : shift+n]
}

// mix is splitmix64's finalizer.
func mix(x uint64) uint64 {
	x = (x ^ x>>30) * 0xbf58476d1ce4e5b9
	x = (x ^ x>>27) * 0x94d049bb133111eb
	return x ^ x>>31
}

// paint fills b with what the tests write at a place: place and stamp can be
// told from every 512 bytes. There are whole words of 8. The stamps 0 and Unwritten are zeros.
func paint(b []byte, stamp uint64, at int64) {
	if stamp == 0 || stamp == zonemodel.Unwritten {
		clear(b)
		return
	}
	for len(b) > 0 {
		n := min(sector, len(b))
		x := mix(stamp + uint64(at)*0x9e3779b97f4a7c15)
		for i := 0; i < n; i += 8 {
			binary.LittleEndian.PutUint64(b[i:], x+uint64(i))
		}
		b, at = b[n:], at+int64(n)
	}
}

// painted is n bytes of what is written with a stamp at a place.
func painted(stamp uint64, at, n int64) []byte {
	b := aligned(n)
	paint(b, stamp, at)
	return b
}

// differ says where two equally long ranges differ first, or nothing.
func differ(at int64, got, want []byte) string {
	for i := range got {
		if got[i] != want[i] {
			j := i &^ 7
			return fmt.Sprintf("byte %#x differs: have % x, want % x", at+int64(i), got[j:j+8], want[j:j+8])
		}
	}
	return ""
}
