//go:build !386 && !arm && !mips && !mipsle

package geofetch

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"os"

	"github.com/maxmind/mmdbwriter"
	"github.com/maxmind/mmdbwriter/mmdbtype"
	"github.com/oschwald/maxminddb-golang/v2"
)

// convert makes a Country database in MaxMind's schema of one whose records are only {"country_code": "TW"},
// and returns how many networks it has.
func convert(flat []byte, to string) (networks int, err error) {
	from, err := maxminddb.OpenBytes(flat)
	if err != nil {
		return 0, err
	}
	tree, err := mmdbwriter.New(mmdbwriter.Options{
		DatabaseType: "DBIP-Country-Lite", BuildEpoch: int64(from.Metadata.BuildEpoch), RecordSize: 24, IncludeReservedNetworks: true,
		Description: map[string]string{"en": Attribution},
	})
	if err != nil {
		return 0, err
	}
	countries := map[string]mmdbtype.Map{}
	for result := range from.Networks() {
		var record struct {
			Code string `maxminddb:"country_code"`
		}
		if err := result.Decode(&record); err != nil {
			return networks, err
		}
		if record.Code == "" {
			continue
		}
		country, ok := countries[record.Code]
		if !ok {
			if len(record.Code) != 2 || len(countries) == 26*26 {
				return networks, fmt.Errorf("%q is no country", record.Code)
			}
			country = mmdbtype.Map{"country": mmdbtype.Map{"iso_code": mmdbtype.String(record.Code)}}
			countries[record.Code] = country
		}
		prefix := result.Prefix().Masked()
		network := &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
		err := tree.Insert(network, country)
		if errors.As(err, new(*mmdbwriter.AliasedNetworkError)) {
			continue // Teredo and the like: the address in the address decides
		}
		if err != nil {
			return networks, err
		}
		networks++
	}
	if networks == 0 {
		return 0, errors.New("it has no country codes")
	}
	f, err := os.Create(to)
	if err != nil {
		return networks, err
	}
	defer f.Close()
	w := bufio.NewWriter(f)
	if _, err := tree.WriteTo(w); err != nil {
		return networks, err
	}
	if err := w.Flush(); err != nil {
		return networks, err
	}
	return networks, f.Close()
}
