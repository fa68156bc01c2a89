// Package accesslog follows the access log that nginx writes when it serves a box's files
// (box.edge: nginx), and says of each request what was really sent. It owns the two formats of a
// line, and following the file across rotation, truncation, deletion and restarts. It knows
// nothing of accounts: whoever takes the deliveries also keeps the position, and stores both in
// one write, so that each line counts once.
package accesslog
