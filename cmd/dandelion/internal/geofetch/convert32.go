//go:build 386 || arm || mips || mipsle

package geofetch

import "errors"

// convert needs a library that does not compile where an int has 32 bits, and more memory than such machines have.
func convert([]byte, string) (int, error) {
	return 0, errors.New("a database can be made on machines with 64 bits only: make it on one and copy the file")
}
