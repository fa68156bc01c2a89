package config

import "net/netip"

const wantNetwork = "an address or a network, such as 192.0.2.1 or 10.0.0.0/8"

// Network is an address or a network of a setting: "192.0.2.1" is 192.0.2.1/32.
type Network struct{ netip.Prefix }

// Networks is a list of them, such as the web servers whose X-Forwarded-For is believed.
type Networks []Network

// UnmarshalText reads an address, or a network, whose other bits are passed over.
func (n *Network) UnmarshalText(text []byte) error {
	if addr, err := netip.ParseAddr(string(text)); err == nil && addr.Zone() == "" {
		n.Prefix = netip.PrefixFrom(addr.Unmap(), addr.Unmap().BitLen())
		return nil
	}
	prefix, err := netip.ParsePrefix(string(text))
	if err != nil {
		return &FieldError{Problem: "is " + quoted(string(text)), Want: wantNetwork}
	}
	n.Prefix = prefix.Masked()
	return nil
}

// Prefixes returns them as the standard library's.
func (n Networks) Prefixes() []netip.Prefix {
	var list []netip.Prefix
	for _, network := range n {
		list = append(list, network.Prefix)
	}
	return list
}
