package traffic

import (
	"encoding/binary"
	"fmt"
	"net/netip"

	"dandelion/pkg/netaddr"
)

// network is a viewer's address cut to /24 or /48, as one word, which is quick to compare: the IP version
// in the first byte, then the address from the left. 0: not known.
type network uint64

func networkOf(a netip.Addr) network {
	a = a.Unmap()
	switch {
	case a.Is4():
		b := a.As4()
		return 4<<56 | network(b[0])<<40 | network(b[1])<<32 | network(b[2])<<24
	case a.Is6():
		b := a.As16()
		return 6<<56 | network(binary.BigEndian.Uint64(b[:])>>16)
	}
	return 0
}

// String returns it as 203.0.113.0/24; "" where it is not known.
func (n network) String() string {
	if n == 0 {
		return ""
	}
	var b [16]byte
	binary.BigEndian.PutUint64(b[:], uint64(n)<<16)
	if n>>56 == 4 {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{b[0], b[1], b[2]}), 24).String()
	}
	return netip.PrefixFrom(netip.AddrFrom16(b), 48).String()
}

// MarshalText writes String.
func (n network) MarshalText() ([]byte, error) { return []byte(n.String()), nil }

// UnmarshalText reads what MarshalText wrote, and nothing else.
func (n *network) UnmarshalText(text []byte) error {
	*n = 0
	if len(text) == 0 {
		return nil
	}
	p, err := netip.ParsePrefix(string(text))
	if err != nil || p != netaddr.Household(p.Addr()) {
		return fmt.Errorf("%.60q is not a network of viewers", text)
	}
	*n = networkOf(p.Addr())
	return nil
}
