"""The lottery ticket: ``search`` finds it, ``folder`` keeps what was found so far."""

from sparseprune._ticket.search import Ticket, TicketRound, lottery_ticket

__all__ = ["Ticket", "TicketRound", "lottery_ticket"]
