// Package web owns the page on which viewers watch: its files, built by Vite from src/ or kept ready in fallback/,
// and the handler that serves them. It must not know of streams, boxes or publishers; the page asks the
// JSON API of the server that it came from.
package web

import (
	"embed"
	"io/fs"
)

// dist holds a placeholder until `npm run build` fills it, so that the package always compiles.
//
//go:embed all:dist
var dist embed.FS

// fallback is the same page without the player library, for builds without npm.
//
//go:embed fallback
var fallback embed.FS

// Built reports whether the page with the player library was built before this program was.
func Built() bool {
	_, err := fs.Stat(dist, "dist/index.html")
	return err == nil
}

// Files returns the page's files, index.html at the top: the built page, or else the one that relies on
// the browser's own HLS and says so.
func Files() fs.FS {
	if Built() {
		return sub(dist, "dist")
	}
	return sub(fallback, "fallback")
}

// sub is fs.Sub for directories that the compiler has checked.
func sub(files embed.FS, dir string) fs.FS {
	inside, err := fs.Sub(files, dir)
	if err != nil {
		panic(err)
	}
	return inside
}
