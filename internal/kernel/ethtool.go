package kernel

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// The names that ethtool has for what Offloads switches.
const (
	featureChecksum = "tx-checksum-ip-generic"
	featureTSO      = "tx-tcp-segmentation"
	featureUSO      = "tx-udp-segmentation"
)

const (
	stringsFeatures = 4  // ETH_SS_FEATURES of linux/ethtool.h
	stringLen       = 32 // ETH_GSTRING_LEN
	featureBlock    = 16 // struct ethtool_get_features_block: available, requested, active, never_changed
	featureActive   = 8  // offset of active therein
	maxFeatures     = 4096
)

// activeOffloads asks which offloads are on for a device of the thread's
// namespace. A TUN does not tell otherwise, and after a restart nobody knows
// what the predecessor was granted.
func activeOffloads(name string) (Offloads, error) {
	sock, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return Offloads{}, fmt.Errorf("ask for offloads: %w", err)
	}
	defer unix.Close(sock)
	// Bit numbers differ between kernels; names do not.
	info := make([]byte, 20)
	binary.NativeEndian.PutUint32(info[0:], unix.ETHTOOL_GSSET_INFO)
	binary.NativeEndian.PutUint64(info[8:], 1<<stringsFeatures)
	if err := ethtool(sock, name, info); err != nil {
		return Offloads{}, err
	}
	count := int(binary.NativeEndian.Uint32(info[16:]))
	if count <= 0 || count > maxFeatures {
		return Offloads{}, fmt.Errorf("ask for offloads: kernel names %d features", count)
	}
	names := make([]byte, 12+count*stringLen)
	binary.NativeEndian.PutUint32(names[0:], unix.ETHTOOL_GSTRINGS)
	binary.NativeEndian.PutUint32(names[4:], stringsFeatures)
	binary.NativeEndian.PutUint32(names[8:], uint32(count))
	if err := ethtool(sock, name, names); err != nil {
		return Offloads{}, err
	}
	blocks := (count + 31) / 32
	bits := make([]byte, 8+blocks*featureBlock)
	binary.NativeEndian.PutUint32(bits[0:], unix.ETHTOOL_GFEATURES)
	binary.NativeEndian.PutUint32(bits[4:], uint32(blocks))
	if err := ethtool(sock, name, bits); err != nil {
		return Offloads{}, err
	}
	return readFeatures(names[12:], bits[8:]), nil
}

// readFeatures joins the list of names with the blocks of bits.
func readFeatures(names, bits []byte) Offloads {
	var o Offloads
	for i := 0; (i+1)*stringLen <= len(names); i++ {
		at := i/32*featureBlock + featureActive
		if at+4 > len(bits) {
			break
		}
		on := binary.NativeEndian.Uint32(bits[at:])&(1<<(i%32)) != 0
		name, _, _ := bytes.Cut(names[i*stringLen:(i+1)*stringLen], []byte{0})
		switch string(name) {
		case featureChecksum:
			o.Checksum = on
		case featureTSO:
			o.TSO = on
		case featureUSO:
			o.USO = on
		}
	}
	return o
}

// ethtoolRequest is struct ifreq with a pointer in its union.
type ethtoolRequest struct {
	name [unix.IFNAMSIZ]byte
	data unsafe.Pointer
	_    [24 - unsafe.Sizeof(uintptr(0))]byte
}

func ethtool(sock int, name string, arg []byte) error {
	req := ethtoolRequest{data: unsafe.Pointer(unsafe.SliceData(arg))}
	copy(req.name[:unix.IFNAMSIZ-1], name)
	_, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(sock), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&req)))
	runtime.KeepAlive(arg)
	if errno != 0 {
		return fmt.Errorf("ask %q for offloads: %w", name, errno)
	}
	return nil
}
