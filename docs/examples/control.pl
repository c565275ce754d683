#!/usr/bin/perl
# A client in another language, written from docs/control.md, with nothing but Perl:
#
#     control.pl COMMAND [NAME=TEXT]...
#
# prints what comes, a line for each value with the way to it: "peers.0.name vm2".
use strict;
use warnings;
use IO::Socket::UNIX;

my ($command, @given) = @ARGV or die "usage: control.pl COMMAND [NAME=TEXT]...\n";
my $path = $ENV{ALPHA_TRIO_SOCKET} || "/run/alpha-trio/control.sock";
my $daemon = IO::Socket::UNIX->new(Peer => $path);
unless ($daemon) { print STDERR "no daemon answers at $path: $!\n"; exit 3 }

# msgpack, as far as requests need it: text and maps with up to 15 pairs.
sub text { my ($text) = @_; pack("C N/a*", 0xdb, $text) }
sub map_of { pack("C", 0x80 | @_ / 2) . join("", @_) }

my $args = map_of(map { text($_) } map { split(/=/, $_, 2) } @given);
print $daemon pack("N/a*", map_of(text("command"), text($command), text("args"), $args));
$daemon->flush;

# msgpack, as far as replies use it.
my %numbers = (0xcb => "d>", 0xcc => "C", 0xcd => "n", 0xce => "N", 0xcf => "Q>",
    0xd0 => "c", 0xd1 => "s>", 0xd2 => "l>", 0xd3 => "q>");
my %lengths = (0xd9 => "C", 0xda => "n", 0xdb => "N", 0xdc => "n", 0xdd => "N",
    0xde => "n", 0xdf => "N");
my $body;    # what is left to be read of it

sub take { my ($count) = @_; substr($body, 0, $count, "") }
sub number { my ($how) = @_; unpack($how, take(length pack($how, 0))) }
sub list { my ($count) = @_; [map { value() } 1 .. $count] }

sub value {
    my $type = number("C");
    return $type if $type < 0x80;
    return {@{list(2 * ($type & 15))}} if $type < 0x90;
    return list($type & 15) if $type < 0xa0;
    return take($type & 31) if $type < 0xc0;
    return $type - 256 if $type >= 0xe0;
    return {0xc0 => "null", 0xc2 => "false", 0xc3 => "true"}->{$type} if $type < 0xc4;
    return number($numbers{$type}) if $numbers{$type};
    my $length = number($lengths{$type} || die "no msgpack of a daemon's\n");
    return take($length) if $type < 0xdc;
    return list($length) if $type < 0xde;
    return {@{list(2 * $length)}};
}

sub show {
    my ($value, @way) = @_;
    my $kind = ref $value;
    if ($kind eq "HASH") { show($value->{$_}, @way, $_) for sort keys %$value }
    elsif ($kind eq "ARRAY") { show($value->[$_], @way, $_) for 0 .. $#$value }
    else { print join(".", @way), @way ? " " : "", $value, "\n" }
}

$| = 1;
while (read($daemon, my $header, 4) == 4) {
    my $length = unpack("N", $header);
    read($daemon, $body, $length) == $length or last;
    my $reply = value();
    if (my $error = $reply->{error}) { warn "$error->{text}\n"; exit $error->{exit_code} }
    if (exists $reply->{result}) { show($reply->{result}); exit 0 }
    show($reply->{event});
}
print STDERR "the daemon has ended\n";
exit 3;
